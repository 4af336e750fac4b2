"""A held-out loss before and after training as text, with the interval of the difference and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.cli.output.characters import arrow, shows
from smollm3_finetune.data.counts import counted


def shown_change(before: float | None, after: float | None, comparison: Mapping[str, Any] | None = None) -> str:
    """`1.885 → 1.851 (−0.034 ± 0.011, better)`; an empty string if nothing was measured."""
    if before is None and after is None:
        return ""
    ends = " ".join(["not measured" if before is None else f"{before:.3f}", arrow()])
    if after is None:
        return f"{ends} not measured"
    if before is None:
        return f"{ends} {after:.3f}"
    if comparison is None:
        return f"{ends} {after:.3f} ({signed(after - before)})"
    half = (comparison["high"] - comparison["low"]) / 2
    sign = "±" if shows("±") else "+-"
    return f"{ends} {after:.3f} ({signed(comparison['difference'])} {sign} {half:.3f}, {comparison['verdict']})"


def shown_power(comparison: Mapping[str, Any] | None) -> str:
    """For the verdict `cannot tell`: the smallest difference that so many rows can show; otherwise an empty string."""
    if comparison is None or comparison["verdict"] != "cannot tell":
        return ""
    rows, smallest = comparison.get("rows"), comparison.get("smallest_difference")
    if not isinstance(rows, int) or not isinstance(smallest, int | float):
        return ""
    return f"{counted(rows, 'held-out row')} can show a difference of {smallest:.3f} or more"


def signed(value: float) -> str:
    """`−0.034`, `+0.120`"""
    minus = "−" if shows("−") else "-"
    return f"{value:+.3f}".replace("-", minus)
