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
