"""Objective `sft`: cross-entropy over the assistant's tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import Trainer

from smollm3_finetune.api import (
    IGNORE_INDEX,
    Conversation,
    NoOptions,
    Renderer,
    flatten_rows,
    pad_rows,
    row_sums,
    token_logps,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over supervised tokens, in float32 or wider. logits (B, T, V), labels (B, T).

    Logits of prompt-tuning tokens, which come before those of the row, are ignored.
    """
    logits = logits[:, -labels.shape[1] : -1].flatten(0, 1)  # (B·(T-1), V): position t predicts token t + 1
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


class SFTTrainer(Trainer):  # type: ignore[misc]
    """Averages over the supervised tokens of the whole accumulated batch, even if the model takes no loss arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.model_accepts_loss_kwargs:  # a wrapper without **kwargs would average each micro-batch alone
            self.compute_loss_func = self._token_mean

    @staticmethod
    def _token_mean(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        count = num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != IGNORE_INDEX).sum()
        return summed_cross_entropy(outputs.logits, labels) / count


class SupervisedFineTuning:
    def __init__(self, options: NoOptions) -> None:
        pass

    def prepare(
        self, conversation: Conversation, renderer: Renderer, max_length: int
    ) -> Mapping[str, Sequence[int]] | None:
        alone = dataclasses.replace(conversation, rejected=None)  # in the reasoning mode of the chosen answer
        encoded = renderer.encode(alone, max_length)
        if conversation.rejected is not None:
            renderer.note("rejected answer not compared")
        if all(label == IGNORE_INDEX for label in encoded.labels[1:]):
            return None
        return {"input_ids": encoded.input_ids, "labels": encoded.labels}

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
        return lambda examples: pad_rows(examples, tokenizer)

    def flat_collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        return flatten_rows

    def trainer_class(self) -> type[Trainer]:
        return SFTTrainer

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[float, int]:
        sums, terms = self.row_losses(model, batch)
        return float(sums.sum()), int(terms.sum())

    def row_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        losses = -token_logps(model, batch).detach().cpu().double()  # (B, T); some devices have no float64
        supervised = batch["labels"].cpu() != IGNORE_INDEX
        supervised[:, 0] = False  # no token predicts the first
        return row_sums(losses, batch), row_sums(supervised.long(), batch)
