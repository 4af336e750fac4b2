"""The objective: the loss of `sft`, with a share of each label spread over the vocabulary.

Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016. The logits are computed for
supervised tokens only, in pieces, for padded, flat and packed rows alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Trainer

from smollm3_finetune.api import (
    IGNORE_INDEX,
    Conversation,
    Renderer,
    flatten_rows,
    pad_rows,
    row_sums,
    token_values,
)
from smollm3_label_smoothing.options import SmoothedOptions


def supervised(batch: Mapping[str, Any]) -> Tensor:
    """Which labels are supervised, in the shape of the labels. The first token of a sequence has no logits."""
    mask: Tensor = batch["labels"] != IGNORE_INDEX
    mask[:, 0] = False
    return mask


class SmoothedObjective:
    def __init__(self, options: SmoothedOptions) -> None:
        self.options = options

    def prepare(
        self, conversation: Conversation, renderer: Renderer, max_length: int
    ) -> Mapping[str, Sequence[int]] | None:
        """The tokens and labels of a conversation; None if it has no supervised tokens."""
        encoded = renderer.encode(conversation, max_length)
        if all(label == IGNORE_INDEX for label in encoded.labels[1:]):
            return None
        return {"input_ids": encoded.input_ids, "labels": encoded.labels}

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
        return lambda examples: pad_rows(examples, tokenizer)

    def flat_collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
        return flatten_rows

    def token_losses(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The loss of each supervised token (N,), in float32 or wider, row by row."""

        def smoothed(logits: Tensor, targets: Tensor) -> Tensor:  # (n, V), (n,)
            return F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.options.smoothing)

        losses: Tensor = token_values(model, batch, smoothed)
        return losses

    def trainer_class(self) -> type[Trainer]:
        objective = self

        class SmoothedTrainer(Trainer):  # type: ignore[misc]
            def compute_loss(
                self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
            ) -> Any:
                terms = supervised(inputs).sum() if num_items_in_batch is None else num_items_in_batch
                return objective.token_losses(model, inputs).sum() / terms

        return SmoothedTrainer

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[float, int]:
        """The held-out loss, which is that of training: the sum, and the number of supervised tokens."""
        return float(self.token_losses(model, batch).sum()), int(supervised(batch).sum())

    def row_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The same for each row, (R,) each: held-out rows are measured in batches."""
        terms = row_sums(supervised(batch), batch)
        rows = self.token_losses(model, batch).split(terms.tolist())
        return torch.stack([losses.sum() for losses in rows]), terms
