"""A held-out loss before and after training as text, with the interval of the difference and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.cli.output.characters import arrow, shows
from smollm3_finetune.data.counts import counted
from smollm3_finetune.evaluation.line import digits_of, half_of, signed, verdict_line


def shown_change(before: float | None, after: float | None, comparison: Mapping[str, Any] | None = None) -> str:
    """`1.885 → 1.851 (−0.034 ± 0.011, better)`; an empty string if nothing was measured.

    The interval has two significant digits, as in the line of the run itself.
    """
    if comparison is not None:
        return in_characters(verdict_line(comparison))
    if before is None and after is None:
        return ""
    ends = [f"{loss:.3f}" if loss is not None else "not measured" for loss in (before, after)]
    change = "" if before is None or after is None else f" ({in_characters(signed(after - before))})"
    return f"{ends[0]} {arrow()} {ends[1]}{change}"


def in_characters(text: str) -> str:
    """The text with `->`, `+-` and `-` in place of characters that the output lacks."""
    for character, plain in (("→", "->"), ("±", "+-"), ("−", "-")):
        text = text if shows(character) else text.replace(character, plain)
    return text


def shown_power(comparison: Mapping[str, Any] | None) -> str:
    """For the verdict `cannot tell`: the smallest difference that so many rows can show; otherwise an empty string."""
    if comparison is None or comparison["verdict"] != "cannot tell":
        return ""
    rows, smallest = comparison.get("rows"), comparison.get("smallest_difference")
    if not isinstance(rows, int):
        return ""
    if not isinstance(smallest, int | float):
        return f"{counted(rows, 'held-out row')} {'is' if rows == 1 else 'are'} too few for a verdict"
    digits = digits_of(half_of(comparison))
    return f"{counted(rows, 'held-out row')} can show a difference of {smallest:.{digits}f} or more"
