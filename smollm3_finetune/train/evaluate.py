"""Held-out loss: the mean over supervised tokens of all held-out rows, whatever the batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Objective

if TYPE_CHECKING:
    from torch import nn


def held_out_loss(
    model: nn.Module,
    objective: Objective,
    examples: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Any],
    batch_size: int,
) -> float:
    """The summed loss over the summed number of terms; nan for no examples. Leaves the model in its mode."""
    import torch

    by_length = sorted(examples, key=lambda e: len(e["input_ids"]))  # little padding; the sum has no order
    device = next(model.parameters()).device
    total, count = 0.0, 0
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(by_length), batch_size):
                batch = {k: v.to(device) for k, v in collate(by_length[start : start + batch_size]).items()}
                loss, terms = objective.loss_sum(model, batch)
                total, count = total + loss, count + terms
    finally:
        model.train(training)
    return total / count if count else math.nan
