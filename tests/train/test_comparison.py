"""The verdict of a run on its own training: in the report, on the screen, and after a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.evaluation.line import change_of

QUICK = ("--max-steps", "4", "--set", "train.sample_tokens=1", "--adapter", "full", "--max-length", "64")
Cli = Callable[..., Any]


def write_rows(*names: str, count: int = 70) -> None:
    for name in names:
        rows = [
            {"messages": [{"role": "user", "content": f"{name} {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
            for n in range(count)
        ]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_run_reports_the_verdict_and_a_resumed_run_the_same(cli: Cli) -> None:
    """Two sources; resumed, and resumed again without the losses of rows, as older versions left them."""
    write_rows("a.jsonl", "b.jsonl")
    data = ("--data", "a.jsonl", "--data", "b.jsonl", "--set", "data.held_out=0.5")
    every = ("--set", "train.save_every=2", "--set", "train.keep_checkpoints=9")
    result = cli("train", *QUICK, *data, *every, "--output", "run")
    assert result.code == 0, result.stderr
    report = json.loads(Path("run/report.json").read_text(encoding="utf-8"))
    found = report["comparison"]
    held_out = [source["held_out"] for source in report["rows"]]
    assert (found["rows"], found["excluded_rows"], found["verdict"]) == (sum(held_out), 0, "better")
    assert found["before"] == pytest.approx(report["before"]["held_out_loss"], rel=1e-12)
    assert found["after"] == pytest.approx(report["after"]["held_out_loss"], rel=1e-12)
    assert list(found["by_source"]) == list(report["after"]["by_source"]) == ["a.jsonl", "b.jsonl"]
    assert [one["rows"] for one in found["by_source"].values()] == held_out
    assert f"held-out loss  {change_of(found)}" in result.stdout
    assert f"{change_of(found['by_source']['b.jsonl'])}: b.jsonl" in result.stdout
    assert ", better)" in change_of(found)
    assert "rows" not in report["before"], "the losses of rows stay in before.json"
    kept = json.loads(Path("run/before.json").read_text(encoding="utf-8"))
    assert kept["prompt"] == report["prompt"], "for the page of a run that fails"

    resumed = cli("train", "--resume", "run", "--max-steps", "6", "--json").report()
    assert {k: resumed["comparison"][k] for k in ("rows", "terms", "before")} == {
        k: found[k] for k in ("rows", "terms", "before")
    }
    assert resumed["comparison"]["after"] < found["after"]
    assert set(resumed["before"]) == set(report["before"]), "without the prompt"

    del kept["rows"]
    Path("run/before.json").write_text(json.dumps(kept), encoding="utf-8")
    older = cli("train", "--resume", "run", "--max-steps", "7")
    assert older.code == 0, older.stderr
    assert "comparison" not in json.loads(Path("run/report.json").read_text(encoding="utf-8"))
    assert f"held-out loss  {kept['held_out_loss']:.4f} before, " in older.stdout


def test_a_run_with_few_held_out_rows_cannot_tell(cli: Cli) -> None:
    write_rows("a.jsonl", count=12)
    result = cli("train", *QUICK, "--data", "a.jsonl", "--set", "data.held_out=0.25", "--output", "run")
    assert result.code == 0, result.stderr
    count = json.loads(Path("run/report.json").read_text(encoding="utf-8"))["comparison"]["rows"]
    assert 0 < count < 12
    assert f"cannot tell from {count} rows: at least 30 are needed)" in result.stdout


def test_a_run_without_held_out_rows_has_no_comparison(cli: Cli) -> None:
    write_rows("a.jsonl", count=4)
    report = cli("train", *QUICK, "--data", "a.jsonl", "--set", "data.held_out=0", "--output", "run", "--json").report()
    assert "comparison" not in report


def test_a_run_that_changes_nothing_cannot_tell(cli: Cli) -> None:
    write_rows("a.jsonl", count=80)
    more = ("--data", "a.jsonl", "--set", "data.held_out=0.5", "--learning-rate", "1e-30", "--output", "run")
    result = cli("train", *QUICK, *more)
    assert result.code == 0, result.stderr
    assert "(+0.000 ± 0.000, cannot tell)" in result.stdout
