"""Corrections by finished runs."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.memory.correction import PART, correction_for
from smollm3_finetune.memory.memory_plan import MemoryPlan
from smollm3_finetune.memory.records import MemoryRecord, read_records, records_file

MB = 10**6


def plan_of(peak: int, unknown: tuple[str, ...] = ()) -> MemoryPlan:
    parts = {} if unknown else {"weights": peak}
    return MemoryPlan(
        device="cpu", length=1000, batch=1, parts=parts, low=peak * 95 // 100, high=peak * 105 // 100, unknown=unknown
    )


def record(predicted: int, measured: int, **changes: Any) -> MemoryRecord:
    about: dict[str, Any] = {"device": "cpu", "machine": platform.node(), "tokens": 1000, "key": "a", "run": "runs/x"}
    return MemoryRecord(**{**about, "predicted": predicted * MB, "measured": measured * MB, **changes})


def test_without_runs_nothing_changes() -> None:
    plan = plan_of(1000 * MB)
    correction = correction_for([], plan, key="a", tokens=1000)
    assert correction.applied(plan) is plan
    assert correction.line(plan) is None


def test_the_median_ratio_of_similar_runs_corrects() -> None:
    plan = plan_of(1000 * MB)
    runs = [record(1000, 1100, key="b"), record(500, 525, key="b"), record(2000, 2040, key="c")]
    correction = correction_for(runs, plan, key="a", tokens=1000)
    corrected = correction.applied(plan)
    assert corrected.peak == 1050 * MB
    assert corrected.high == round(1050 * MB * 1.05) > 1100 * MB, "no run took more than its upper end"
    assert corrected.parts == {"weights": 1000 * MB, PART: 50 * MB}
    assert correction.line(plan) == "corrected by +5.0% by the measured memory of 3 finished runs on this machine"


def test_the_upper_end_covers_every_run() -> None:
    plan = plan_of(1000 * MB)
    runs = [record(1000, 1000, key="b"), record(1000, 1000, key="b"), record(1000, 1200, key="b")]
    corrected = correction_for(runs, plan, key="a", tokens=1000).applied(plan)
    assert (corrected.peak, corrected.high) == (1000 * MB, 1200 * MB)


@pytest.mark.parametrize(("count", "lowered"), [(4, False), (5, True)])
def test_few_runs_do_not_lower_the_upper_end(count: int, lowered: bool) -> None:
    plan = plan_of(1000 * MB)
    corrected = correction_for([record(1000, 700, key="b")] * count, plan, key="a", tokens=1000).applied(plan)
    assert corrected.peak == 700 * MB
    assert (corrected.high < plan.high) is lowered


def test_runs_of_another_size_and_small_runs_do_not_correct() -> None:
    plan = plan_of(1000 * MB)
    runs = [record(10_000, 20_000, key="b"), record(200, 400, key="b")]
    assert correction_for(runs, plan, key="a", tokens=1000).runs == 0


@pytest.mark.parametrize("tokens", [1000, 2000])
def test_never_below_what_a_run_with_these_settings_took(tokens: int) -> None:
    plan = plan_of(1000 * MB)
    runs = [record(1000, 900), record(1000, 900), record(1000, 1300)]
    correction = correction_for(runs, plan, key="a", tokens=tokens)
    corrected = correction.applied(plan)
    assert corrected.peak == corrected.low == 1300 * MB <= corrected.high
    line = correction.line(plan)
    assert line == "corrected by +30.0%: 3 finished runs with these settings took up to 1.3 GB on this machine"


def test_a_run_with_larger_batches_is_no_lower_bound() -> None:
    plan = plan_of(1000 * MB)
    corrected = correction_for([record(1000, 900)], plan, key="a", tokens=999).applied(plan)
    assert corrected.peak == 900 * MB


def test_an_unknown_prediction_stays_unknown() -> None:
    plan = plan_of(0, unknown=("quantizer 'x' does not state its memory",))
    correction = correction_for([record(1000, 900)], plan, key="a", tokens=1000)
    assert correction.applied(plan) is plan
    assert correction.line(plan) is None


def test_damaged_lines_and_other_machines_are_left_out(tmp_path: Path) -> None:
    import json

    file = records_file(tmp_path)
    file.parent.mkdir()
    good = record(1000, 900)
    lines = [
        "{", "[]", '{"device": "cpu"}', "", "\x00",
        json.dumps({**good.as_json(), "machine": "another"}), json.dumps({**good.as_json(), "device": "A GPU"}),
        json.dumps({**good.as_json(), "measured": "much"}), json.dumps({**good.as_json(), "predicted": 0}),
        json.dumps(good.as_json()),
    ]  # fmt: skip
    file.write_text("\n".join(lines))
    assert read_records(tmp_path, "cpu") == [good]
    assert read_records(tmp_path / "missing", "cpu") == []
