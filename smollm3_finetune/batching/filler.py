"""Fillers at the end of a pass, so that several processes share it evenly and no row is trained on twice.

Every process must take every step, also one that has no rows left: gradients are exchanged. Without fillers, accelerate
would repeat rows from the beginning of the pass. A filler is never combined with rows. The objective gets:

* if a process has rows left, a batch of these rows alone, which is smaller than the others;
* if it has none, a batch of one row of the pass, marked as `IDLE`. Core counts no terms and no tokens of it and
  multiplies its loss by 0 (see `train.trainer`), so it only takes part in the exchange.

So objectives need not know of fillers, and a filler needs nothing that an ordinary row does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.batching.packing import unpacked

FILL = "fill"
"""The key of a filler; its value is an item of the pass."""

IDLE = "idle"
"""The key that marks the batch of a process without rows."""


class Filled:
    """A map-style dataset of `items`, followed by fillers up to a multiple of `share`.

    `share` is the number of items that all processes take at a time.
    """

    def __init__(self, items: Any, share: int) -> None:
        self.items, self.fills = items, -len(items) % share

    def __len__(self) -> int:
        return len(self.items) + self.fills

    def __getitem__(self, index: int) -> Any:
        return self.items[index] if index < len(self.items) else {FILL: self.items[0]}

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [self[i] for i in indices]


def without_fills(items: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """The examples of a batch without fillers; if all items are fillers, one example, and True."""
    own = [dict(item) for item in items if FILL not in item]
    return (unpacked(own), False) if own else (unpacked([dict(items[0][FILL])])[:1], True)
