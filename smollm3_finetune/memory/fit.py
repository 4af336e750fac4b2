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
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""The lengths for which the table names the largest batch."""


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

    def largest_batch(tokens: int, most: int = LARGEST_BATCH) -> int | None:
        return last(lambda rows: predict(tokens, rows).high, budget, most)

    steps = last(lambda n: predict(n * STEP, batch).high, budget, room // STEP)
    if steps is not None:
        longest: int | None = steps * STEP
    else:
        longest = SHORTEST if predict(SHORTEST, batch).high <= budget else None
    largest = largest_batch(length)
    table: list[tuple[int, int]] = []
    for tokens in (n for n in LENGTHS if n <= room):
        known = length <= tokens and largest is not None  # a longer row takes more
        most = table[-1][1] if table else LARGEST_BATCH
        found = (
            largest if tokens == length else largest_batch(tokens, min(most, largest) if known and largest else most)
        )
        if found is None:
            break
        table.append((tokens, found))
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


def last(value: Callable[[int], int], limit: int, most: int) -> int | None:
    """The largest number from 1 to `most` whose value is at most `limit`; None if that of 1 is larger.

    Values do not fall. They are nearly linear, so that interpolation needs few of them; every second one is
    in the middle of what is left, so that others are found too.
    """
    if most < 1 or (lowest := value(1)) > limit:
        return None
    low, high, middle = 1, most + 1, False
    known = [(1, lowest)]
    while high - low > 1:
        if middle and len(known) > 4:
            at = (low + high) // 2
        elif len(known) < 2:
            at = 2
        else:
            (first, one), (second, other) = _around(known, low)
            slope = max((other - one) / (second - first), 1e-9)
            at = first + int((limit - one) / slope)
        at = min(max(at, low + 1), high - 1)
        found = value(at)
        known = sorted([*known, (at, found)])
        low, high = (at, high) if found <= limit else (low, at)
        middle = not middle
    return low


def _around(known: list[tuple[int, int]], low: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two known values nearest to where the limit is passed: those of `low` and the next, or the last two."""
    at = next(n for n, (number, _) in enumerate(known) if number == low)
    if at + 1 < len(known):
        return known[at], known[at + 1]
    return known[at - 1], known[at]
