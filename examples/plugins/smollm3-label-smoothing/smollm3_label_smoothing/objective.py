"""The objective: prepares examples, collates them into batches, and computes the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from smollm3_finetune.api import IGNORE_INDEX, Conversation, Renderer, pad_rows
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Trainer

from smollm3_label_smoothing.options import LabelSmoothingOptions


def token_losses(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The loss of each token, in float32 or wider; 0 if it is not supervised. logits (B, T, V), labels (B, T)."""
    flat = logits[:, :-1].flatten(0, 1)  # (B, T, V) -> (B·(T-1), V): position t predicts token t + 1
    wide = flat if flat.dtype == torch.float64 else flat.float()
    targets = labels[:, 1:]  # (B, T-1)
    losses = F.cross_entropy(
        wide, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=smoothing
    )
    return losses.view(targets.shape)


class SmoothedTrainer(Trainer):  # type: ignore[misc]
    """Averages the loss over the supervised tokens of the whole accumulated batch."""

    smoothing = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compute_loss_func = self._token_mean

    def _token_mean(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        count = num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != IGNORE_INDEX).sum()
        return token_losses(outputs.logits, labels, self.smoothing).sum() / count


class LabelSmoothingObjective:
    def __init__(self, options: LabelSmoothingOptions) -> None:
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

    def trainer_class(self) -> type[Trainer]:
        return type("LabelSmoothingTrainer", (SmoothedTrainer,), {"smoothing": self.options.smoothing})

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[float, int]:
        """The held-out loss, which is that of training: the sum, and the number of supervised tokens."""
        sums, terms = self.row_losses(model, batch)
        return float(sums.sum()), int(terms.sum())

    def row_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The same for each row, (B,) each: held-out rows are measured in batches."""
        labels = batch["labels"]
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        logits = model(**inputs, use_cache=False).logits  # (B, T, V)
        losses = token_losses(logits, labels, self.options.smoothing).cpu().double()  # (B, T-1)
        return losses.sum(1), (labels[:, 1:] != IGNORE_INDEX).sum(1)
