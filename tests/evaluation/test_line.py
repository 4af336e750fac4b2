"""The line of a verdict is the same on the screen, in tables, on the page and for a task."""

from __future__ import annotations

from typing import Any

import pytest

from smollm3_finetune.cli.output.losses import shown_change
from smollm3_finetune.evaluation.line import change_of, verdict_line
from smollm3_finetune.evaluation.task_results import TaskResult
from smollm3_finetune.report.verdict import verdict_of

CASES: dict[str, dict[str, Any]] = {
    "1.885 → 1.851 (−0.034 ± 0.011, better)": {"low": -0.045, "high": -0.023},
    "1.88500 → 1.85100 (−0.03400 ± 0.00025, better)": {"low": -0.03425, "high": -0.03375},
    "1.885 → 1.851 (−0.034, better)": {"low": None, "high": None},
}


@pytest.mark.parametrize("line", CASES)
def test_every_place_shows_the_same_line(line: str) -> None:
    found = {"rows": 40, "before": 1.885, "after": 1.851, "difference": -0.034, "verdict": "better", **CASES[line]}
    assert verdict_line(found) == change_of(found) == shown_change(None, None, found) == line
    assert change_of({**found, "rows": 4}) == f"{line.removesuffix(')')} from 4 rows: at least 30 are needed)"
    page = verdict_of(found)
    assert page is not None
    assert page.line == f"{line.removesuffix(', better)')})"
    numbers: dict[str, Any] = {k: v for k, v in found.items() if k != "rows"}
    task = TaskResult(task="t", metric="m", higher_is_better=False, documents=40, **numbers)
    assert task.line() == f"t m {line}"
