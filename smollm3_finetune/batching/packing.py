"""Rows packed into sequences of limited length; no row is split.

Best-fit decreasing: from the longest row to the shortest, each goes into the sequence with the least remaining room
that fits it. The seed decides the order of rows of equal length. Packing needs twelve bytes per row; the result four.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 4096
"""Rows that are converted to Python integers at a time."""

Ints = NDArray[np.int32]


def best_fit(lengths: Ints, capacity: int, seed: int) -> tuple[Ints, Ints]:
    """The rows ordered by bin (rows,), and the start of each bin plus the end of the last (bins + 1,).

    A row longer than `capacity` gets its own bin.
    """
    order = np.random.default_rng(seed).permutation(len(lengths)).astype(np.int32)
    order = order[np.argsort(-lengths[order], kind="stable")]
    bin_of = np.empty(len(lengths), dtype=np.int32)
    fitting = _Bins(capacity)
    for start in range(0, len(order), PIECE):
        piece = order[start : start + PIECE]
        bin_of[piece] = [fitting.add(length) for length in lengths[piece].tolist()]
    rows = np.argsort(bin_of, kind="stable").astype(np.int32)
    counts = np.bincount(bin_of, minlength=len(fitting.below))
    return rows, np.concatenate(([0], np.cumsum(counts))).astype(np.int32)


class _Bins:
    """Bins with remaining room, in one stack per amount of room."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.top = array("i", [-1]) * (capacity + 1)
        """For each amount of room, the bin on top of its stack; -1 if the stack is empty."""
        self.below = array("i")
        """For each bin, the bin below it in its stack; -1 if there is none."""
        self.rooms = 0
        """Bit `n` is set if the stack for room `n` holds a bin."""

    def add(self, length: int) -> int:
        """The bin that a row of `length` tokens goes into."""
        enough = self.rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1  # the smallest that is enough
            found = self._pop(room)
        else:
            room, found = self.capacity, len(self.below)
            self.below.append(-1)
        if room > length:
            self._push(found, room - length)
        return found

    def _pop(self, room: int) -> int:
        found = self.top[room]
        self.top[room] = self.below[found]
        if self.top[room] < 0:
            self.rooms ^= 1 << room
        return found

    def _push(self, which: int, room: int) -> None:
        self.below[which] = self.top[room]
        self.top[room] = which
        self.rooms |= 1 << room


class Packed:
    """A map-style dataset of bins: an item is `{"rows": […]}`, the examples that share a sequence."""

    def __init__(self, examples: Any, lengths: Ints, capacity: int, seed: int) -> None:
        self.examples = examples
        self.rows, self.boundaries = best_fit(lengths, capacity, seed)

    def __len__(self) -> int:
        return len(self.boundaries) - 1

    def __getitem__(self, index: int) -> dict[str, list[Any]]:
        which = range(len(self))[index]
        rows = self.rows[self.boundaries[which] : self.boundaries[which + 1]]
        return {"rows": [self.examples[i] for i in rows.tolist()]}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, list[Any]]]:
        return [self[i] for i in indices]


def unpacked(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The examples of several items; an item of a dataset that is not packed is itself an example."""
    return [row for item in items for row in item.get("rows", [item])]
