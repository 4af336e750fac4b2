"""Held-out loss: the mean over supervised tokens of all held-out rows, whatever the batches; overall and by source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Objective
from smollm3_finetune.data.tokens import Examples

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Loss:
    """A summed loss and the number of terms (supervised tokens) in it."""

    total: float = 0.0
    terms: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.total + other.total, self.terms + other.terms)

    @property
    def mean(self) -> float:
        """Per term; nan where there are none."""
        return self.total / self.terms if self.terms else math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean) if self.mean < 700 else math.inf


def held_out_loss(
    model: nn.Module,
    objective: Objective,
    examples: Examples | Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Any],
    batch_size: int,
) -> Loss:
    """The loss over all `examples`, in evaluation mode and without gradients. Leaves the model in its mode."""
    import torch

    from smollm3_finetune.batching.probe import on_device

    lengths = examples.lengths() if isinstance(examples, Examples) else [len(e["input_ids"]) for e in examples]
    by_length = sorted(range(len(examples)), key=lengths.__getitem__)  # little padding; the sum has no order
    loss = Loss()
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(by_length), batch_size):
                rows = [examples[i] for i in by_length[start : start + batch_size]]
                loss += Loss(*objective.loss_sum(model, on_device(collate(rows), model)))
    finally:
        model.train(training)
    return loss
