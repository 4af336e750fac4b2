"""A held-out loss before and after training as text, with the interval of the difference and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.cli.output.characters import arrow, shows
from smollm3_finetune.data.counts import counted


def shown_change(before: float | None, after: float | None, comparison: Mapping[str, Any] | None = None) -> str:
    """`1.885 → 1.851 (−0.034 ± 0.011, better)`; an empty string if nothing was measured.

    The interval has two significant digits, as in the line of the run itself.
    """
    if comparison is not None:
        digits = digits_of(comparison)
        before, after = comparison["before"], comparison["after"]
        change = signed(comparison["difference"], digits)
        if comparison["low"] is not None:
            half = (comparison["high"] - comparison["low"]) / 2
            change += f" {'±' if shows('±') else '+-'} {half:.{digits}f}"
        return f"{before:.{digits}f} {arrow()} {after:.{digits}f} ({change}, {comparison['verdict']})"
    if before is None and after is None:
        return ""
    ends = [f"{loss:.3f}" if loss is not None else "not measured" for loss in (before, after)]
    change = "" if before is None or after is None else f" ({signed(after - before)})"
    return f"{ends[0]} {arrow()} {ends[1]}{change}"


def digits_of(comparison: Mapping[str, Any]) -> int:
    """The decimal places with which half of the interval has two significant digits; at least 3, at most 6."""
    half = 0.0 if comparison["low"] is None else abs(comparison["high"] - comparison["low"]) / 2
    return 3 if not half or not math.isfinite(half) else min(max(3, 1 - math.floor(math.log10(half))), 6)


def shown_power(comparison: Mapping[str, Any] | None) -> str:
    """For the verdict `cannot tell`: the smallest difference that so many rows can show; otherwise an empty string."""
    if comparison is None or comparison["verdict"] != "cannot tell":
        return ""
    rows, smallest = comparison.get("rows"), comparison.get("smallest_difference")
    if not isinstance(rows, int):
        return ""
    if not isinstance(smallest, int | float):
        return f"{counted(rows, 'held-out row')} {'is' if rows == 1 else 'are'} too few for a verdict"
    return f"{counted(rows, 'held-out row')} can show a difference of {smallest:.{digits_of(comparison)}f} or more"


def signed(value: float, digits: int = 3) -> str:
    """`−0.034`, `+0.120`"""
    minus = "−" if shows("−") else "-"
    return f"{value:+.{digits}f}".replace("-", minus)
