"""A comparison in one line of text, from the `comparison` of a run's report. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.data.counts import counted

LEAST_ROWS = 30
"""With fewer rows, the interval depends too much on single rows for a verdict."""


def change_of(comparison: Mapping[str, Any]) -> str:
    """For example `1.885 → 1.851 (−0.034 ± 0.011, better)`. Small intervals get more digits, at most 6."""
    low, high, rows = comparison["low"], comparison["high"], comparison["rows"]
    half = None if low is None or high is None else (high - low) / 2
    digits = 3 if not half else min(max(3, 1 - math.floor(math.log10(half))), 6)
    change = f"{comparison['difference']:+.{digits}f}".replace("-", "−")
    if half is not None:
        change += f" ± {half:.{digits}f}"
    verdict = comparison["verdict"]
    if rows < LEAST_ROWS:
        verdict += f" from {counted(rows, 'row')}: at least {LEAST_ROWS} are needed"
    return f"{comparison['before']:.{digits}f} → {comparison['after']:.{digits}f} ({change}, {verdict})"


def power_of(comparison: Mapping[str, Any]) -> str | None:
    """What so many rows can show, if the verdict is "cannot tell"; None otherwise."""
    smallest, rows = comparison["smallest_difference"], comparison["rows_for_half"]
    if comparison["verdict"] != "cannot tell" or smallest is None:
        return None
    return f"{comparison['rows']:,} rows can show a difference of {smallest:.2g}; half of it needs {rows:,} rows"


def measure_lines(measures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The `measures` of a report, for example `accuracy 0.500 → 0.731 ± 0.061 (+0.231 ± 0.061)`."""
    return [f"{name.replace('_', ' ')} {measure_values(about)}" for name, about in measures.items()]


def measure_values(about: Mapping[str, Any]) -> str:
    """The means of a measure with half of their 95 % intervals: `0.500 → 0.731 ± 0.061 (+0.231 ± 0.061)`."""
    after, before, difference = about["after"], about.get("before"), about.get("difference")
    halves = [half for half in map(_half, (after, difference)) if half]
    digits = min(max(3, *(1 - math.floor(math.log10(half)) for half in halves)), 6) if halves else 3
    if before is None or difference is None:
        return _with_half(after["mean"], after, digits)
    change = f"{difference['mean']:+.{digits}f}"
    half = _half(difference)
    change += "" if half is None else f" ± {half:.{digits}f}"
    return f"{before['mean']:.{digits}f} → {_with_half(after['mean'], after, digits)} ({change})".replace("-", "−")


def _half(mean: Mapping[str, Any] | None) -> float | None:
    """Half of an interval; None if there is none."""
    if mean is None or mean["low"] is None or mean["high"] is None:
        return None
    return float(mean["high"] - mean["low"]) / 2


def _with_half(value: float, mean: Mapping[str, Any], digits: int) -> str:
    half = _half(mean)
    return f"{value:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")
