"""The values of a reference for all examples of a dataset, in batches that depend on the examples alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune import stopping
from smollm3_finetune.inference.precision import autocast
from smollm3_finetune.reference.computed import NAME, Refer, Values, values_of
from smollm3_finetune.reference.stored import BLOCK

if TYPE_CHECKING:
    from torch import nn

    from smollm3_finetune.api import ReferenceObjective
    from smollm3_finetune.batching.strategy import Batches
    from smollm3_finetune.reference.stored import Stored


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A reference, and everything needed to evaluate it."""

    model: nn.Module
    """Inside the context that makes it the reference."""
    objective: ReferenceObjective
    batches: Batches
    batch_size: int
    device: str
    dtype: str

    def blocks(self, examples: Sequence[Any], advance: Callable[[int], None]) -> Iterator[Values]:
        """The values of the examples, in their order, on the CPU; `BLOCK` of them at a time.

        Inside a block, batches have examples of similar length, which saves padding.
        """
        for start in range(0, len(examples), BLOCK):
            block = [dict(examples[i]) for i in range(start, min(start + BLOCK, len(examples)))]
            by_length = sorted(range(len(block)), key=lambda i: len(block[i]["input_ids"]))
            found: list[Any] = [None] * len(block)
            for at in range(0, len(by_length), self.batch_size):
                stopping.check()
                numbers = by_length[at : at + self.batch_size]
                for number, values in zip(numbers, self._of([block[i] for i in numbers]), strict=True):
                    found[number] = values
                advance(len(numbers))
            yield found

    def _of(self, examples: list[dict[str, Any]]) -> Values:
        from smollm3_finetune.batching.probe import on_device

        with autocast(self.device, self.dtype):
            batch = on_device(self.batches(examples), self.model)
            values = values_of(self.objective, self.model, batch, len(examples))
        return [{name: value.to("cpu", copy=True) for name, value in one.items()} for one in values]


def looked_up(values: Stored, first: int = 0) -> Refer:
    """What adds the stored values of examples to a batch; they are counted from the stored example `first`."""

    def refer(model: nn.Module, batch: Any, examples: Sequence[int]) -> Any:
        device = next(model.parameters()).device
        found = [{n: v.to(device) for n, v in values[first + i].items()} for i in examples]
        return {**batch, NAME: found}

    return refer
