"""Curves as text: one mark for each series, so that they are distinguishable without color; ASCII where needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smollm3_finetune.cli.output.characters import shows
from smollm3_finetune.runs.metrics import Losses

MARKS = "●○×+△□◆◇"
ASCII_MARKS = "*ox+#@%&"
LINES = "│└─"
ASCII_LINES = "|+-"
LOGARITHMIC = 20
"""The vertical axis is logarithmic if the largest value is more than this many times the smallest."""
CURVE_WIDTH = 100
"""Characters of the widest curve, axis included."""
LABEL = 8
"""Characters of the values on the left: `-3.6e+08`."""
SMALLEST = 10
"""Columns of the narrowest curve."""


@dataclass(frozen=True)
class Series:
    """A named sequence of points: steps, and values that are finite."""

    label: str
    points: Sequence[tuple[int, float]]


def shown_curve(series: Sequence[Series], width: int, height: int = 12, *, ascii_only: bool | None = None) -> str:
    """The curves of several series over the same steps, with axes and a legend; an empty string without points.

    Values that share a column are averaged. `width` is in characters, axis included; `height` in lines, without the
    axis of the steps. `ascii_only`: by default, if standard output lacks the other characters.
    """
    drawn = [(at, one) for at, one in enumerate(series) if one.points]
    if not drawn:
        return ""
    plain = not shows(MARKS + LINES) if ascii_only is None else ascii_only
    marks, lines_of = (ASCII_MARKS, ASCII_LINES) if plain else (MARKS, LINES)
    side, corner, bottom = tuple(lines_of)
    steps = [step for _, one in drawn for step, _ in one.points]
    first, last = min(steps), max(steps)
    columns = max(width - LABEL - 2, SMALLEST)
    averaged = [(at, _by_column(one.points, first, last, columns)) for at, one in drawn]
    values = [value for _, points in averaged for value in points.values()]
    axis = _Axis.of(min(values), max(values), height)
    grid = [[" "] * columns for _ in range(height)]
    owners: dict[tuple[int, int], list[int]] = {}
    for at, points in averaged:
        for column, value in points.items():
            owners.setdefault((axis.row(value), column), []).append(at)
    for (row, column), found in owners.items():  # in cells that several series share, their marks alternate
        grid[row][column] = marks[found[column % len(found)] % len(marks)]
    ticks = {0, height - 1, *range(0, height - 2, 4)}
    lines = []
    for row in range(height):
        label = _number(axis.value(row)) if row in ticks else ""
        lines.append(f"{label:>{LABEL}} {side}{''.join(grid[row])}".rstrip())
    lines.append(" " * (LABEL + 1) + corner + bottom * columns)
    begin, end = f"{first}", f"{last}"
    lines.append(" " * (LABEL + 2) + f"{begin} {f'step {end}'.rjust(columns - len(begin) - 1)}")
    shown = [f"{marks[at % len(marks)]} {one.label}" for at, one in drawn]
    legend = [*shown, *(["(logarithmic)"] if axis.logarithmic else [])]
    return "\n".join([*lines, *_filled(legend, width, " " * (LABEL + 2))])


def shown_losses(losses: Losses, width: int) -> str:
    """The curves of the training loss and the held-out loss; an empty string if there are fewer than two points."""
    if len(losses.training) + len(losses.held_out) < 2:
        return ""
    series = [Series("loss", losses.training), Series("held-out loss", losses.held_out)]
    return shown_curve(series, min(width, CURVE_WIDTH))


@dataclass(frozen=True)
class _Axis:
    """The vertical axis; row 0 is the top."""

    low: float
    high: float
    rows: int
    logarithmic: bool

    @classmethod
    def of(cls, low: float, high: float, rows: int) -> _Axis:
        if low == high:  # a constant is drawn in the middle
            low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
        return cls(low, high, rows, low > 0 and high / low > LOGARITHMIC)

    @property
    def _scale(self) -> Callable[[float], float]:
        return math.log if self.logarithmic else float

    def row(self, value: float) -> int:
        low, high = self._scale(self.low), self._scale(self.high)
        return round((high - self._scale(value)) / (high - low) * (self.rows - 1))

    def value(self, row: int) -> float:
        """The value in the middle of a row."""
        low, high = self._scale(self.low), self._scale(self.high)
        found = high - row / (self.rows - 1) * (high - low)
        return math.exp(found) if self.logarithmic else found


def _by_column(points: Sequence[tuple[int, float]], first: int, last: int, columns: int) -> dict[int, float]:
    """The mean of the values in each column that has any."""
    found: dict[int, list[float]] = {}
    for step, value in points:
        column = round((step - first) / max(last - first, 1) * (columns - 1))
        found.setdefault(column, []).append(value)
    return {column: math.fsum(values) / len(values) for column, values in found.items()}


def _number(value: float) -> str:
    """At most 8 characters, as long as the exponent has two digits."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.1e}"


def _filled(parts: Sequence[str], width: int, indent: str) -> list[str]:
    """The parts of a legend, as many on a line as fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(f"{indent}{part}")
    return lines
