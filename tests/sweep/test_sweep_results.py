"""Losses of trials are compared row by row, and only if they are the same quantity on the same rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smollm3_finetune.evaluation.bootstrap import interval
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.evaluation.saved_losses import after_json, saved_losses
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.sweep.results import Finished, rank

TERMS = np.arange(10, 50)


def rows_of(seed: int, shift: float) -> RowLosses:
    """Losses that share most of their spread over the rows."""
    spread = np.random.default_rng(0).normal(2.0, 1.0, len(TERMS)) + np.random.default_rng(seed).normal(shift, 0.05, 40)
    return RowLosses(sums=spread * TERMS, terms=TERMS, sources=np.zeros(40, dtype=np.int64), titles=("rows",))


def trial(
    name: str, rows: RowLosses, values: Mapping[str, Any] | None = None, content: str = "same", **report: Any
) -> Finished:
    run = RunDir(Path(name))
    run.path.mkdir()
    run.after.write_text(json.dumps(after_json(rows, content)), encoding="utf-8")
    run.report.write_text(json.dumps({"after": {"held_out_loss": rows.loss.mean}, **report}), encoding="utf-8")
    return Finished(name=name, run=run, values=values or {}, seed=0)


def test_trials_are_ranked_and_told_apart_by_paired_differences(isolated: Path) -> None:
    found = rank([trial("c", rows_of(3, 0.5)), trial("a", rows_of(1, 0.0)), trial("b", rows_of(2, 0.001))])
    assert list(found.results) == ["a", "b", "c"] and found.best == "a" and found.notes == []
    a, b, c = found.results.values()
    rows = rows_of(1, 0.0)
    assert a.half == interval(rows.sums, rows.terms, rows.sources, seed=0).half and a.half > 0.2
    assert a.against_best is None and b.against_best is not None and c.against_best is not None
    assert (b.against_best.verdict, c.against_best.verdict) == ("cannot tell", "worse")
    assert c.against_best.difference == pytest.approx(c.loss - a.loss, abs=1e-12)
    assert c.against_best.low is not None and c.against_best.difference - c.against_best.low < a.half / 5


@pytest.mark.parametrize(
    ("first", "other", "note"),
    [
        ({}, {"content": "other"}, "the held-out rows of the trials differ"),
        ({"values": {"objective.beta": 0.1}}, {"values": {"objective.beta": 0.2}}, "differ in objective.beta"),
        ({"values": {"objective": "sft"}}, {"values": {"objective": "distill"}}, "losses are different quantities"),
        (
            {"values": {"quant.name": "none"}, "reference": {"kind": "base"}},
            {"values": {"quant.name": "gptq"}, "reference": {"kind": "base"}},
            "relative to a reference, and the trials differ in quant.name",
        ),
    ],
)
def test_losses_of_other_rows_or_quantities_are_not_compared(
    isolated: Path, first: dict[str, Any], other: dict[str, Any], note: str
) -> None:
    found = rank([trial("a", rows_of(1, 0.0), **first), trial("b", rows_of(2, 0.1), **other)])
    assert found.best is None
    assert len(found.notes) == 1 and note in found.notes[0]
    assert list(found.results) == ["a", "b"] and all(one.against_best is None for one in found.results.values())


def test_other_values_may_differ(isolated: Path) -> None:
    values = [{"quant.name": "none", "objective": "sft"}, {"quant.name": "gptq", "objective": "sft"}]
    assert rank([trial(str(n), rows_of(n, n / 10), v) for n, v in enumerate(values)]).best == "0"


def test_a_trial_without_losses_by_row_has_no_interval_and_is_not_compared(isolated: Path) -> None:
    trials = [trial("a", rows_of(1, 0.0)), trial("b", rows_of(2, 0.1))]
    trials[1].run.after.write_text("{", encoding="utf-8")
    found = rank(trials)
    assert found.best is None and found.results["b"].half is None


def test_saved_losses_do_not_depend_on_sources_without_held_out_rows(isolated: Path) -> None:
    rows = rows_of(1, 0.0)
    two = RowLosses(sums=rows.sums, terms=rows.terms, sources=np.ones(40, dtype=np.int64), titles=("train", "held out"))
    found = [saved_losses(trial(name, one).run) for name, one in (("a", rows), ("b", two))]
    assert found[0] is not None and found[1] is not None
    assert found[0].rows.has_rows_of(found[1].rows) and len(found[1].rows.titles) == 1
