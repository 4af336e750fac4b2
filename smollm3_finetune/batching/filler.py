"""Filler items without supervised tokens at the end of a pass, so that processes share the pass evenly.

Without them, accelerate would repeat rows from the beginning of the pass. A single process does not repeat rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.batching.packing import unpacked

FILL = "fill"
"""The key of a filler item; its value is an example without supervised tokens."""

NUMBER = "example_number"
"""The key of an example's number, in datasets of numbered examples (see `batching.numbered`)."""

FILL_TOKENS = 2
"""Tokens of a filler example. The first token of a row is never predicted, so a row needs two."""


class Filled:
    """A map-style dataset of `items`, followed by filler items up to a multiple of `share`."""

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
    """The items, with filler items up to a multiple of `share`, the number that all processes take at a time.

    Returned unchanged if no filler is needed. Also if examples have other keys than `input_ids` and `labels`: an
    example without supervised tokens cannot be built then, and accelerate repeats rows.
    """
    (first, *_) = unpacked([items[0]])
    if len(items) % share == 0 or set(first) - {NUMBER} != {"input_ids", "labels"}:
        return items
    return Filled(items, share, first["input_ids"][:FILL_TOKENS])


def without_fills(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The examples of a batch without filler; if all items are filler, one filler example."""
    return unpacked([dict(item) for item in items if FILL not in item]) or [dict(items[0][FILL])]
