"""Curves with few points: the extremes of the measured ones are kept."""

from __future__ import annotations

from collections.abc import Sequence

Points = list[tuple[int, float | None]]
"""(step, value); None: the value was not finite, and the line is interrupted."""

BUCKETS = 200
SMOOTHED_FROM = 20
"""Losses from which a mean over neighbors is drawn too."""
DENSE = 200
"""Other values from which it is: the curve of this many noisy values is a band."""


def thinned(points: Sequence[tuple[int, float | None]], buckets: int = BUCKETS) -> Points:
    """At most 4 × `buckets` points: the first, smallest, largest and last of each bucket, and gaps."""
    if len(points) <= 4 * buckets:
        return list(points)
    kept: Points = []
    for i in range(buckets):
        part = points[i * len(points) // buckets : (i + 1) * len(points) // buckets]
        finite = [(value, at) for at, (_, value) in enumerate(part) if value is not None]
        if not finite:
            kept.append((part[0][0], None))
            continue
        chosen = {finite[0][1], min(finite)[1], max(finite)[1], finite[-1][1]}
        kept += [part[at] for at in sorted(chosen)]
    return kept


def window(count: int) -> int:
    """The number of values that are averaged in a curve of `count` values; odd."""
    return max(count // 30, 5) | 1


def smoothed(points: Sequence[tuple[int, float | None]]) -> Points:
    """The mean of the values around each point, over `window` values or as many as there are; gaps are left out."""
    finite = [(step, value) for step, value in points if value is not None]
    half = window(len(finite)) // 2
    sums = [0.0]
    for _, value in finite:
        sums.append(sums[-1] + value)
    found: Points = []
    for i, (step, _) in enumerate(finite):
        reach = min(half, i, len(finite) - 1 - i)  # as many before as after: a falling curve is not shifted
        found.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return found
