"""Objective `distill`: the divergence of a teacher's and the student's probabilities at supervised tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from smollm3_distill.divergence import divergence, outcomes
from smollm3_distill.options import DistillOptions
from smollm3_distill.teacher import most_probable, normalized, taught
from smollm3_finetune.api import (
    IGNORE_INDEX,
    Conversation,
    ModelError,
    Renderer,
    flatten_rows,
    pad_rows,
    row_sums,
    token_values,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


class Distillation:
    reference_options = ("top_k", "temperature")
    """The options on which the teacher's values depend."""

    def __init__(self, options: DistillOptions) -> None:
        self.options = options

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

    # ------------------------------------------------------------------------------------------ teacher

    def reference_values(self, model: nn.Module, batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """For each example with n supervised tokens: `ids` (n, k) and `logps` (n, k + 1), of `model` as the teacher."""
        options = self.options

        def of_teacher(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            return most_probable(logits, options.top_k, options.temperature)

        ids, logps = token_values(model, batch, of_teacher)
        counts = supervised_tokens(batch).tolist()
        rows = zip(ids.split(counts), logps.split(counts), strict=True)
        return [{"ids": own, "logps": probabilities} for own, probabilities in rows]

    # ------------------------------------------------------------------------------------------ student

    def token_losses(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The loss of each supervised token: (N,), in the order of the batch."""
        weight = self.options.loss_weight

        def of_student(logits: Tensor, targets: Tensor, ids: Tensor, logps: Tensor) -> Tensor:
            loss = weight * self._divergence(logits, ids, logps)
            return loss if weight == 1 else loss + (1 - weight) * cross_entropy(logits, targets)

        losses: Tensor = token_values(model, batch, of_student, *taught(batch["reference"]))
        return losses

    def _divergence(self, logits: Tensor, ids: Tensor, logps: Tensor) -> Tensor:
        """(n,), from the student's logits (n, V) and the teacher's stored values."""
        options, count = self.options, logits.shape[1]
        if ids.numel() and int(ids.max()) >= count:
            raise ModelError(
                f"the teacher has a token {int(ids.max())}, but the student has {count} tokens",
                hint="--objective-opt teacher=base, or a teacher with the same tokenizer",
            )
        student = outcomes(logits, ids.long(), options.temperature)
        return divergence(normalized(logps, logits.dtype), student, options.divergence, options.beta)

    def trainer_class(self) -> type[Trainer]:
        objective = self

        class DistillationTrainer(Trainer):  # type: ignore[misc]
            def compute_loss(
                self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
            ) -> Tensor:
                count = objective.terms(inputs) if num_items_in_batch is None else num_items_in_batch
                return objective.token_losses(model, inputs).sum() / count

        return DistillationTrainer

    # ----------------------------------------------------------------------------------------- held out

    def terms(self, batch: Mapping[str, Any]) -> int:
        return int(supervised_tokens(batch).sum())

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[float, int]:
        sums, terms = self.row_losses(model, batch)
        return float(sums.sum()), int(terms.sum())

    def row_losses(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        terms = supervised_tokens(batch)
        return by_row(self.token_losses(model, batch), terms), terms

    def row_measures(self, model: nn.Module, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Loss and terms, and of each row the means over its tokens: of both parts of the loss, and how often the most
        probable token is the teacher's."""
        weight, terms = self.options.loss_weight, supervised_tokens(batch)

        def of_student(logits: Tensor, targets: Tensor, ids: Tensor, logps: Tensor) -> tuple[Tensor, ...]:
            agrees = (logits.argmax(1) == ids[:, 0]).to(logits.dtype)
            return self._divergence(logits, ids, logps), cross_entropy(logits, targets), agrees

        parts = token_values(model, batch, of_student, *taught(batch["reference"]))
        divergences, entropies, agreements = (by_row(part, terms) for part in parts)
        return {
            "loss": weight * divergences + (1 - weight) * entropies,
            "terms": terms,
            "divergence": divergences / terms,
            "cross_entropy": entropies / terms,
            "agreement": agreements / terms,
        }


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each token (n,). logits (n, V), targets (n,)"""
    return logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]


def supervised_tokens(batch: Mapping[str, Any]) -> Tensor:
    """The number of supervised tokens of each row: (R,), on the CPU."""
    supervised = batch["labels"].cpu() != IGNORE_INDEX
    supervised[:, 0] = False  # no token predicts the first
    return row_sums(supervised.long(), batch)


def by_row(values: Tensor, terms: Tensor) -> Tensor:
    """The sums over the tokens of each row: (R,), in float64 on the CPU. values (N,), terms (R,)"""
    parts = values.detach().cpu().double().split(terms.tolist())  # some devices have no float64
    return torch.stack([part.sum() for part in parts])
