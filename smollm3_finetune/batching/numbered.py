"""Examples that know their number, so that what was computed of each before training is found again in its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from smollm3_finetune.batching.strategy import Batches
from smollm3_finetune.data.examples import Examples

NUMBER = "example_number"
"""The key of an example's number."""


class Numbered:
    """A map-style dataset of the same examples, each with its number."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = range(len(self))[index]
        return {**self.examples[number], NUMBER: number}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[i] for i in indices]

    def each_length(self) -> Iterator[int]:
        """Tokens of each example."""
        return self.examples.each_length()


def collating_numbered(batches: Batches, add: Callable[[Any, Sequence[int]], Any]) -> Batches:
    """The same batches of numbered examples; `add(batch, numbers)` returns the batch with what is known of them."""

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = [example[NUMBER] for example in examples]
        own = [{name: values for name, values in example.items() if name != NUMBER} for example in examples]
        found: dict[str, Any] = add(batches.collate(own), numbers)
        return found

    return replace(batches, collate=collate)
