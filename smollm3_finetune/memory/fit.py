"""The longest rows and the largest batch that fit into a size of memory: a search over the predictor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smollm3_finetune.memory.memory_plan import MemoryPlan

Predict = Callable[[int, int], "MemoryPlan"]
"""`(length, batch)` to the prediction."""

STEP = 64
"""Lengths are multiples of this number."""
SHORTEST = 8
"""The smallest value of `data.max_length`."""
LARGEST_BATCH = 4096
LENGTHS = (256, 1024, 4096, 16384, 65536)
"""The lengths for which the table names the largest batch, beside that of the run."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fits. A prediction fits if the upper end of its interval does."""

    budget: int
    length: int
    """The length of the run as it is configured."""
    batch: int
    """The batch of the run as it is configured."""
    planned: MemoryPlan
    """The prediction for the run as it is configured."""
    longest: int | None
    """The longest rows at that batch; None if even the shortest do not fit."""
    largest: int | None
    """The largest batch at that length; None if even one row does not fit."""
    table: tuple[tuple[int, int], ...]
    """Lengths, and the largest batch of each that fits."""
    smallest: MemoryPlan
    """The prediction for one row of the shortest length."""

    @property
    def fits(self) -> bool:
        return self.planned.high <= self.budget

    @property
    def nothing_fits(self) -> bool:
        return self.smallest.high > self.budget

    def as_json(self) -> dict[str, Any]:
        return {
            "budget": self.budget,
            "fits": self.fits,
            "longest": None if self.longest is None else {"length": self.longest, "batch": self.batch},
            "largest": None if self.largest is None else {"length": self.length, "batch": self.largest},
            "batches": [{"length": length, "batch": batch} for length, batch in self.table],
        }


def fit(predict: Predict, budget: int, *, length: int, batch: int, context: int | None) -> Fit:
    """What fits into `budget` bytes, of lengths up to the model's `context`."""
    predict = cache(predict)
    room = max(context or LENGTHS[-1], SHORTEST)
    largest = last(lambda rows: predict(length, rows).high, budget, LARGEST_BATCH)
    tokens = length * (largest or 1)  # about as many fit at other lengths
    steps = last(lambda n: predict(n * STEP, batch).high, budget, room // STEP, guess=tokens // batch // STEP)
    if steps is not None:
        longest: int | None = steps * STEP
    else:
        longest = SHORTEST if predict(SHORTEST, batch).high <= budget else None
    table: list[tuple[int, int]] = []
    most = LARGEST_BATCH  # a longer row takes more
    for each in sorted({length, *LENGTHS}):
        if each > room:
            break
        found = last(lambda rows, n=each: predict(n, rows).high, budget, most, guess=tokens // each)  # type: ignore[misc]
        if found is None:
            break
        table.append((each, found))
        most = found
    return Fit(
        budget=budget,
        length=length,
        batch=batch,
        planned=predict(length, batch),
        longest=longest,
        largest=largest,
        table=tuple(table),
        smallest=predict(SHORTEST, 1),
    )


def last(value: Callable[[int], int], limit: int, most: int, guess: int | None = None) -> int | None:
    """The largest number from 1 to `most` whose value is at most `limit`; None if that of 1 is larger.

    Values do not fall. They are nearly linear, so that interpolation, from a `guess` if there is one, needs few of
    them; later every second one is in the middle of what is left, so that others are found too.
    """
    if most < 1:
        return None
    low, high = 0, most + 1
    known: list[tuple[int, int]] = []
    at = min(max(guess or 1, 1), most)
    while True:
        found = value(at)
        known = sorted([*known, (at, found)])
        low, high = (at, high) if found <= limit else (low, at)
        if high - low <= 1:
            return low or None
        if len(known) == 1:
            at = at + 1 if found <= limit else at - 1
        elif len(known) > 4 and len(known) % 2:
            at = (low + high) // 2
        else:
            (first, one), (second, other) = _around(known, limit)
            at = first + int((limit - one) / max((other - one) / (second - first), 1e-9))
        at = min(max(at, low + 1), high - 1)


def _around(known: list[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """Two neighboring known values, between which the limit is passed, or that are nearest to where it is."""
    below = sum(found <= limit for _, found in known)
    start = min(max(below - 1, 0), len(known) - 2)
    return known[start : start + 2]
