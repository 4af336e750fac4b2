"""Axes: ranges, ticks and texts of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOG_FROM = 100.0
"""A logarithmic axis is used where it may be, if the largest value is this many times the smallest."""


def shown(value: float) -> str:
    """A number with three or four significant digits: `0.3561`, `2.00e−5`, `2,883`."""
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return _scientific(value, 2)
    if size >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _scientific(value: float, decimals: int) -> str:
    """`2.00e−5`, `1e9`"""
    mantissa, _, power = f"{value:.{decimals}e}".partition("e")
    return f"{mantissa}e{int(power)}".replace("-", "−")


@dataclass(frozen=True)
class Axis:
    """Maps values to 0 … 1."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    """(value, text)"""
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low)


def steps_axis(last: int) -> Axis:
    """The axis of steps from 0 to `last`."""
    last = max(last, 1)
    width = max(_nice(last / 5), 1)
    ticks = [n * width for n in range(int(last // width) + 1)]
    return Axis(0, last, tuple((t, f"{int(t):,}") for t in ticks))


def value_axis(values: Iterable[float], *, may_be_log: bool = False, from_zero: bool = False) -> Axis:
    """An axis that holds all values, with three to seven ticks at round numbers and some room above them."""
    found = list(values)
    low, high = min(found), max(found)
    if may_be_log and low > 0 and high / low >= LOG_FROM:
        return _log_axis(low, high)
    low = min(low, 0.0) if from_zero else low
    if low == high:
        room = abs(low) * 0.1 or 1.0
        low, high = (0.0 if from_zero and low == 0 else low - room), high + room
    width = _nice((high - low) / 4)
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    ticks = [n * width for n in range(first, last + 1)]
    room = width / 2 if high >= ticks[-1] - 1e-6 * width else 0.0
    return Axis(ticks[0], ticks[-1] + room, tuple(zip(ticks, _texts(ticks, width), strict=True)))


def _log_axis(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(-(-(last - first) // 6), 1)
    ticks = [10.0**n for n in range(first, last + 1, every)]
    texts = [f"{t:,g}" if 1e-3 <= t < 1e5 else _scientific(t, 0) for t in ticks]
    return Axis(10.0**first, 10.0**last, tuple(zip(ticks, texts, strict=True)), True)


def _nice(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 × 10ⁿ that is not below `least`."""
    scale = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(n * scale for n in (1, 2, 2.5, 5, 10) if n * scale >= least * (1 - 1e-9))


def _texts(ticks: Sequence[float], width: float) -> list[str]:
    """The texts of linear ticks, all with the same number of decimals."""
    largest = max(map(abs, ticks))
    if largest >= 1e6 or (0 < largest < 1e-3):
        power = math.floor(math.log10(largest))
        decimals = max(power - math.floor(math.log10(width)), 0) + (not _is_one_digit(width))
        return ["0" if t == 0 else _scientific(t, decimals) for t in ticks]
    decimals = max(-math.floor(math.log10(width)), 0) + (not _is_one_digit(width) and width < 10)
    return [f"{t:,.{decimals}f}".replace("-", "−") for t in ticks]


def _is_one_digit(width: float) -> bool:
    mantissa = width / 10.0 ** math.floor(math.log10(width))
    return abs(mantissa - round(mantissa)) < 1e-6
