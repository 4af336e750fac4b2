"""Held-out loss: the mean over the supervised tokens of all held-out rows, independent of batches; also by source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Objective, Progress
from smollm3_finetune.data.examples import Examples
from smollm3_finetune.inference.precision import autocast

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
        """The loss per term; nan if there are no terms."""
        return self.total / self.terms if self.terms else math.nan

    @property
    def perplexity(self) -> float | None:
        """None if it is too large for a float, because JSON cannot represent infinity."""
        return math.exp(self.mean) if self.mean < 700 else None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The held-out rows of a run, and everything needed to measure its model on them."""

    examples: Sequence[Examples]
    """One for each source."""
    titles: Sequence[str]
    model: nn.Module
    objective: Objective
    collate: Callable[[list[dict[str, Any]]], Any]
    batch_size: int
    device: str
    dtype: str
    """The dtype of the run, which determines the precision of the measurement."""

    def measure(self, progress: Progress) -> dict[str, Any]:
        """Loss and perplexity over all supervised tokens, and the loss by source if there are several."""
        count = sum(len(e) for e in self.examples)
        with autocast(self.device, self.dtype), progress.task(f"measuring {count:,} held-out rows") as task:
            losses = [
                held_out_loss(self.model, self.objective, e, self.collate, self.batch_size, task.advance)
                for e in self.examples
            ]
        overall = sum(losses, Loss())
        if not overall.terms:
            return {"held_out_loss": None, "perplexity": None}
        report: dict[str, Any] = {"held_out_loss": overall.mean, "perplexity": overall.perplexity}
        if len(losses) > 1:
            report["by_source"] = {t: one.mean for t, one in zip(self.titles, losses, strict=True) if one.terms}
        return report


def with_current_titles(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The results from before training with the current source titles: a resumed run may use other paths."""
    if "by_source" not in before:
        return dict(before)
    losses = zip(after.get("by_source", ()), before["by_source"].values(), strict=False)
    return {**before, "by_source": dict(losses)}


def held_out_loss(
    model: nn.Module,
    objective: Objective,
    examples: Examples | Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Any],
    batch_size: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> Loss:
    """The loss over all `examples`, in evaluation mode and without gradients. Restores the mode of every module."""
    import torch

    from smollm3_finetune.api.helpers import evaluating
    from smollm3_finetune.batching.probe import on_device

    lengths = examples.lengths() if isinstance(examples, Examples) else [len(e["input_ids"]) for e in examples]
    by_length = sorted(range(len(examples)), key=lengths.__getitem__)  # less padding; the order does not affect the sum
    loss = Loss()
    with evaluating(model), torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            rows = [examples[i] for i in by_length[start : start + batch_size]]
            loss += Loss(*objective.loss_sum(model, on_device(collate(rows), model)))
            advance(len(rows))
    return loss
