"""A pass that several processes share evenly: at its end stand items that teach nothing.

accelerate would repeat rows from the beginning of the pass instead, which one process alone does not train on twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.batching.packing import unpacked

FILL = "fill"
"""The key of an item that fills up; its value is an example of which nothing is learned."""

FILL_TOKENS = 2
"""How long it is: the first token has nothing to be learned from, so one alone would be no row."""


class Filled:
    """A map-style dataset of `items`, and behind them as many that fill up as make it a multiple of `share`."""

    def __init__(self, items: Any, share: int, ids: Sequence[int]) -> None:
        self.items, self.fills = items, -len(items) % share
        self.fill = {FILL: {"input_ids": list(ids), "labels": [IGNORE_INDEX] * len(ids)}}

    def __len__(self) -> int:
        return len(self.items) + self.fills

    def __getitem__(self, index: int) -> Any:
        return self.items[index] if index < len(self.items) else self.fill

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [self[i] for i in indices]


def filled(items: Any, share: int) -> Any:
    """The items for processes that take `share` of them together at a time; as they are where none is missing.

    And where examples are not ids and labels: what teaches nothing is then unknown, and accelerate repeats rows.
    """
    (first, *_) = unpacked([items[0]])
    if len(items) % share == 0 or set(first) != {"input_ids", "labels"}:
        return items
    return Filled(items, share, first["input_ids"][:FILL_TOKENS])


def without_fills(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The examples of a batch of items; where all only fill up, one of which nothing is learned."""
    return unpacked([dict(item) for item in items if FILL not in item]) or [dict(items[0][FILL])]
