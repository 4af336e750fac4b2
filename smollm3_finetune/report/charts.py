"""Charts as the template draws them: curves in a box of 1000 units, ticks and marks in percent and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from smollm3_finetune.report.scales import Axis, shown, steps_axis, value_axis
from smollm3_finetune.report.thinning import Points, thinned

WIDTH = 1000
HEIGHT = 200
"""Pixels, and units of the box."""
MOST_MARKS = 40
"""Points of a curve that are drawn with a mark each."""
LABEL_ROOM = 14
"""Pixels between two letters at the ends of curves."""
NEAR = 5.0
"""Percent of the width within which two letters could cover each other."""


@dataclass(frozen=True)
class Curve:
    """A curve to draw."""

    label: str
    points: Points
    style: str
    """A class of style.css: its color, width and dashes."""
    mark: str = ""
    """The symbol at its points; empty for none."""
    letter: str = ""
    """A letter beside the curve, for several runs."""


@dataclass(frozen=True)
class Drawn:
    """A curve in the coordinates of the chart."""

    curve: Curve
    path: str
    marks: Sequence[tuple[float, float]]
    """(percent, pixels) of the symbols."""
    letters: Sequence[tuple[float, float]]
    """(percent, pixels) of the letters."""


@dataclass(frozen=True)
class Chart:
    """A chart; positions along the steps are in percent, and values are in pixels from the top."""

    name: str
    title: str
    unit: str
    curves: Sequence[Drawn]
    step_ticks: Sequence[tuple[float, str]]
    value_ticks: Sequence[tuple[float, str]]
    height: int
    log: bool
    summary: str
    """What the chart shows, in words."""
    values: dict[str, Any] = field(default_factory=dict)
    """What the script needs to show values: the ranges of both axes, and the points of each curve."""


def chart(
    name: str,
    title: str,
    unit: str,
    curves: Sequence[Curve],
    last_step: int,
    *,
    may_be_log: bool = False,
    from_zero: bool = False,
    noisy: bool = False,
) -> Chart | None:
    """The chart of these curves; None if none of them has a value. Noisy curves have letters only at their ends."""
    few = [(c, thinned(c.points)) for c in curves]
    few = [(c, points) for c, points in few if any(value is not None for _, value in points)]
    if not few:
        return None
    finite = [value for _, points in few for _, value in points if value is not None]
    steps, axis = steps_axis(last_step), value_axis(finite, may_be_log=may_be_log, from_zero=from_zero)
    drawn = [Drawn(c, _path(points, steps, axis), _marks(c, points, steps, axis), ()) for c, points in few]
    return Chart(
        name=name,
        title=title,
        unit=unit,
        curves=_with_letters(drawn, [points for _, points in few], steps, axis, only_ends=noisy),
        step_ticks=[(round(100 * steps.at(value), 2), text) for value, text in steps.ticks],
        value_ticks=[(_pixels(axis, value), text) for value, text in axis.ticks],
        height=HEIGHT,
        log=axis.log,
        summary="; ".join(f"{c.label}: {_in_words(points)}" for c, points in few),
        values={
            "last": int(steps.high),
            "low": axis.low,
            "high": axis.high,
            "log": axis.log,
            "height": HEIGHT,
            "curves": [
                {"label": c.label, "style": c.style, "points": [[s, _compact(v)] for s, v in points if v is not None]}
                for c, points in few
            ],
        },
    )


def _compact(value: float) -> float:
    """Six significant digits, which are more than are shown."""
    return float(f"{value:.6g}")


def _pixels(axis: Axis, value: float) -> float:
    return round(HEIGHT * (1 - axis.at(value)), 1)


def _path(points: Points, steps: Axis, axis: Axis) -> str:
    """The data of an SVG path; a value that is not finite interrupts it, and a point between two gaps is a dot."""
    parts, pen = [], "M"
    for step, value in points:
        if value is None:
            pen = "M"
            continue
        x, y = round(WIDTH * steps.at(step), 1), _pixels(axis, value)
        parts.append(f"{pen}{x:g} {y:g}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(parts)


def _marks(curve: Curve, points: Points, steps: Axis, axis: Axis) -> list[tuple[float, float]]:
    """Where the symbols of a curve are: at all of its points, or at evenly spaced ones."""
    finite = [(step, value) for step, value in points if value is not None]
    if not curve.mark:
        return []
    if len(finite) > MOST_MARKS:
        last = len(finite) - 1
        finite = [finite[i * last // (MOST_MARKS - 1)] for i in range(MOST_MARKS)]
    return [(round(100 * steps.at(step), 2), _pixels(axis, value)) for step, value in finite]


def _with_letters(
    drawn: Sequence[Drawn], points: Sequence[Points], steps: Axis, axis: Axis, *, only_ends: bool
) -> list[Drawn]:
    """The curves with their letters: one on each curve, at different places, and one behind its end."""
    ends: dict[int, tuple[float, float]] = {}
    on: dict[int, tuple[float, float]] = {}
    lettered = [i for i, one in enumerate(drawn) if one.curve.letter]
    for n, i in enumerate(lettered):
        finite = [(step, value) for step, value in points[i] if value is not None]
        step, value = finite[-1]
        ends[i] = (100 * steps.at(step), _pixels(axis, value))
        step, value = finite[len(finite) * (2 * n + 1) // (2 * len(lettered) + 1)]
        on[i] = (100 * steps.at(step), _pixels(axis, value))
    apart = _apart(dict(ends))
    found = []
    for i, one in enumerate(drawn):
        at = []
        if i in ends:
            x, y = on[i]
            above = y - 4 if y >= LABEL_ROOM else y + LABEL_ROOM  # below it at the upper edge
            at = [] if only_ends else [(round(x, 2), round(above, 1))]
            at.append((round(ends[i][0], 2), apart[i]))
        found.append(Drawn(one.curve, one.path, one.marks, at))
    return found


def _apart(ends: dict[int, tuple[float, float]]) -> dict[int, float]:
    """Heights in pixels of letters at these places: moved down where two would cover each other, or up at the edge."""
    found: dict[int, float] = {}
    for i in sorted(ends, key=lambda i: ends[i][1]):
        near = [y for other, y in found.items() if abs(ends[other][0] - ends[i][0]) < NEAR]
        found[i] = max([ends[i][1], *(y + LABEL_ROOM for y in near)])
    for i in ends:
        below = max((y for other, y in found.items() if abs(ends[other][0] - ends[i][0]) < NEAR), default=0.0) - HEIGHT
        ends[i] = (ends[i][0], found[i] - max(below, 0.0))
    return {i: round(y + 4, 1) for i, (_, y) in ends.items()}


def _in_words(points: Points) -> str:
    """`4.338 at step 1, 0.3561 at step 60; smallest 0.3561, largest 4.338`"""
    finite = [(step, value) for step, value in points if value is not None]
    (first, start), (last, end) = finite[0], finite[-1]
    if first == last:
        return f"{shown(start)} at step {first}"
    values = [value for _, value in finite]
    return (
        f"{shown(start)} at step {first}, {shown(end)} at step {last}, "
        f"smallest {shown(min(values))}, largest {shown(max(values))}"
    )
