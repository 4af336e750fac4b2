"""Objective `kto`: single answers with a label, and a KL term from answers that belong to other prompts.

The KL term is that of TRL: in each batch, every prompt is followed by the answer of the row before it (the first prompt
by the last answer), and the mean of log(model / reference) of these answers, but at least 0, is subtracted from the
log-ratios of the rows. No gradient flows through it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from smollm3_finetune.api import (
    IGNORE_INDEX,
    Conversation,
    Renderer,
    flatten_rows,
    pad_rows,
    row_logps,
)
from smollm3_preference import losses
from smollm3_preference.batches import reference_of, row_lengths, summed, supervised_logps
from smollm3_preference.objective import Outcome, PreferenceObjective
from smollm3_preference.options import KTOOptions
from smollm3_preference.trainer import preference_trainer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase, Trainer

Example = Mapping[str, Sequence[int]]
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]
OTHERS = "others_"
"""The prefix of the names of a batch that hold the prompts with answers of other rows."""


def with_other_answers(examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    """Each prompt with the answer of the example before it, cut to the maximum length of the prompt's example."""
    rows = []
    for n, example in enumerate(examples):
        start, other = example["prompt"][0], examples[n - 1]
        most, own = example["max_length"][0], other["prompt"][0]
        ids = [*example["input_ids"][:start], *other["input_ids"][own:]][:most]
        labels = [*[IGNORE_INDEX] * start, *other["labels"][own:]][:most]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


class KTO(PreferenceObjective):
    """Ethayarajh et al., Model Alignment as Prospect Theoretic Optimization (2024)."""

    reference_options: ClassVar[Collection[str]] = ()
    """The values are log-probabilities, which depend on no option."""
    reference_needs_batch: ClassVar[bool] = True
    """The values for the KL term depend on the row before each one in its batch. Core refuses batches of one row."""

    def __init__(self, options: KTOOptions) -> None:
        self.options = options

    def prepare(self, conversation: Conversation, renderer: Renderer, max_length: int) -> Example | None:
        if conversation.desirable is None:
            renderer.note("without a label")
            return None
        encoded = renderer.encode(conversation, max_length)
        labels = encoded.labels
        start = next((i for i, label in enumerate(labels) if i and label != IGNORE_INDEX), None)
        if start is None:
            cut = len(encoded.input_ids) >= max_length
            renderer.note("answer beyond data.max_length" if cut else "empty answer")
            return None
        return {
            "input_ids": encoded.input_ids,
            "labels": labels,
            "prompt": [start],
            "max_length": [max_length],
            "desirable": [int(conversation.desirable)],
        }

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
        return lambda examples: _batch(examples, lambda rows: pad_rows(rows, tokenizer))

    def flat_collator(self, tokenizer: PreTrainedTokenizerBase) -> Collate:
        return lambda examples: _batch(examples, flatten_rows)

    def trainer_class(self) -> type[Trainer]:
        return preference_trainer(self)

    def terms(self, batch: Mapping[str, Any]) -> int:
        return len(row_lengths(batch))

    def reference_values(self, model: nn.Module, batch: Mapping[str, Any]) -> Sequence[Mapping[str, Tensor]]:
        own = supervised_logps(model, batch).split(row_lengths(batch).tolist())
        others = row_logps(model, _others(batch))
        return [{"logps": logps, "other": other} for logps, other in zip(own, others, strict=True)]

    def outcome(self, model: nn.Module, batch: Mapping[str, Any]) -> Outcome:
        """The losses without the KL term, so that the loss of a row does not depend on the rows beside it."""
        return self._outcome(model, batch, None)

    def training_outcome(self, model: nn.Module, batch: Mapping[str, Any], trainer: Trainer) -> Outcome:
        return self._outcome(model, batch, self._kl(model, batch, trainer.accelerator))

    def _outcome(self, model: nn.Module, batch: Mapping[str, Any], kl: Tensor | None) -> Outcome:
        options, counts, tokens = self.options, row_lengths(batch), supervised_logps(model, batch)
        reward = options.beta * summed(tokens - reference_of(batch, tokens), counts)
        desirable = batch["desirable"].to(tokens.device).bool()
        kl_reward = tokens.new_zeros(()) if kl is None else options.beta * kl.to(tokens)
        weights = torch.where(desirable, options.desirable_weight, options.undesirable_weight).to(tokens)
        found = weights * losses.kto(reward, desirable, kl_reward)
        if options.sft_weight:
            mean = summed(tokens, counts) / counts.to(tokens)
            found = found - options.sft_weight * torch.where(desirable, mean, torch.zeros_like(mean))
        return Outcome(found, _measures(reward.detach(), desirable, kl))

    def _kl(self, model: nn.Module, batch: Mapping[str, Any], accelerator: Any) -> Tensor:
        """The KL term of a batch, over the rows of all processes.

        A row that is alone in its process does not count: the row before it is the row itself. So that of an
        idle process does not count either. 0 if no row counts.
        """
        with torch.no_grad():
            others = row_logps(model, _others(batch))
        gains = others - torch.stack([example["other"] for example in batch["reference"]]).to(others)
        if len(gains) == 1:
            gains = gains[:0]
        total = torch.stack([gains.sum(), gains.new_tensor(float(len(gains)))])
        total, count = accelerator.reduce(total).unbind()
        return (total / count).clamp(min=0) if count > 0 else gains.new_zeros(())


def _batch(examples: list[dict[str, Any]], collate: Collate) -> dict[str, Any]:
    others = with_other_answers(examples)
    return {
        **collate([{n: e[n] for n in ("input_ids", "labels")} for e in examples]),
        **{f"{OTHERS}{name}": value for name, value in collate(others).items()},
        "desirable": torch.tensor([e["desirable"][0] for e in examples]),
    }


def _others(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of prompts with answers of other rows."""
    return {name.removeprefix(OTHERS): value for name, value in batch.items() if name.startswith(OTHERS)}


def _measures(reward: Tensor, desirable: Tensor, kl: Tensor | None) -> dict[str, Tensor]:
    """The reward of good and of bad rows, whether its sign is right (0 counts half), and the KL term."""
    missing = torch.full_like(reward, torch.nan)
    sign = torch.where(desirable, reward.sign(), -reward.sign())
    found = {
        "chosen_reward": torch.where(desirable, reward, missing),
        "rejected_reward": torch.where(desirable, missing, reward),
        "accuracy": (sign + 1) / 2,
    }
    return found if kl is None else {**found, "kl": torch.ones_like(reward) * kl.to(reward)}
