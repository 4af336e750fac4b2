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
    rows = comparison["rows"]
    few = rows < LEAST_ROWS
    return verdict_line(comparison, f" from {counted(rows, 'row')}: at least {LEAST_ROWS} are needed" if few else "")


def verdict_line(values: Mapping[str, Any], note: str = "") -> str:
    """`BEFORE → AFTER (DIFFERENCE ± HALF, VERDICT)`, with a `note` after the verdict.

    `values` have a `verdict`, and what `losses_and_change` needs.
    """
    losses, change = losses_and_change(values)
    return f"{losses} ({change}, {values['verdict']}{note})"


def losses_and_change(values: Mapping[str, Any]) -> tuple[str, str]:
    """`BEFORE → AFTER` and `DIFFERENCE ± HALF`, from `before`, `after`, `difference`, and `low` and `high` or None."""
    half = half_of(values)
    digits = digits_of(half)
    change = signed(values["difference"], digits) + ("" if half is None else f" ± {half:.{digits}f}")
    return f"{values['before']:.{digits}f} → {values['after']:.{digits}f}", change


def half_of(values: Mapping[str, Any]) -> float | None:
    """Half of the interval from `low` to `high`; None if there is none."""
    low, high = values["low"], values["high"]
    return None if low is None or high is None else float(high - low) / 2


def digits_of(half: float | None) -> int:
    """The decimal places with which half of an interval has two significant digits; at least 3, at most 6."""
    return 3 if not half or not math.isfinite(half) else min(max(3, 1 - math.floor(math.log10(abs(half)))), 6)


def signed(value: float, digits: int = 3) -> str:
    """`−0.034`, `+0.120`, with the minus sign of typography."""
    return f"{value:+.{digits}f}".replace("-", "−")


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
    digits = digits_of(min(halves, default=None))
    if before is None or difference is None:
        return _with_half(after["mean"], after, digits)
    change = f"{difference['mean']:+.{digits}f}"
    half = _half(difference)
    change += "" if half is None else f" ± {half:.{digits}f}"
    return f"{before['mean']:.{digits}f} → {_with_half(after['mean'], after, digits)} ({change})".replace("-", "−")


def _half(mean: Mapping[str, Any] | None) -> float | None:
    """Half of an interval; None if there is none."""
    return None if mean is None else half_of(mean)


def _with_half(value: float, mean: Mapping[str, Any], digits: int) -> str:
    half = _half(mean)
    return f"{value:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def retained_line(found: Mapping[str, Any]) -> str:
    """The `as_json` of a retained share: `0.93 of the gain (95 % interval 0.88 to 0.98; …)`, or `not known: …`."""
    if found["share"] is None:
        return f"not known: {found['reason']}"
    around = "no interval" if found["low"] is None else f"95 % interval {found['low']:.2f} to {found['high']:.2f}"
    adapter = "adapter, computing as shipped" if found.get("as_shipped") else "adapter"
    return (
        f"{found['share']:.2f} of the gain ({around}; held-out loss {found['base']:.3f} base, {found['adapter']:.3f} "
        f"{adapter}, {found['shipped']:.3f} shipped; {found['rows']} rows)"
    )
