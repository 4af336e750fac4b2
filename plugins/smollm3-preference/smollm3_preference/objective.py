"""What all objectives of this plugin have in common: losses and measures from one forward, and a Trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from smollm3_preference.batches import reference_of, row_lengths, summed, supervised_logps
from smollm3_preference.pairs import PairBatches
from smollm3_preference.trainer import preference_trainer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Trainer


@dataclass(frozen=True)
class Outcome:
    """What a batch of examples gives."""

    losses: Tensor
    """(E,): of each example, with gradients."""
    measures: Mapping[str, Tensor]
    """(E,) each, without gradients; nan for an example that does not have the measure."""


class PreferenceObjective(ABC):
    """An objective whose loss is a mean over examples."""

    @abstractmethod
    def outcome(self, model: nn.Module, batch: Mapping[str, Any]) -> Outcome:
        """The losses and measures of a batch, as held-out rows are measured."""

    def training_outcome(self, model: nn.Module, batch: Mapping[str, Any], trainer: Trainer) -> Outcome:
        """The same for a step of training."""
        return self.outcome(model, batch)

    @abstractmethod
    def terms(self, batch: Mapping[str, Any]) -> int: ...

    def trainer_class(self) -> type[Trainer]:
        return preference_trainer(self)

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[float, int]:
        losses = self.outcome(model, batch).losses
        return float(losses.detach().cpu().double().sum()), len(losses)

    def row_losses(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        losses = self.outcome(model, batch).losses.detach().cpu().double()
        return losses, torch.ones(len(losses), dtype=torch.long)

    def row_measures(self, model: nn.Module, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        found = self.outcome(model, batch)
        return {"loss": found.losses, "terms": torch.ones(len(found.losses), dtype=torch.long), **found.measures}


@dataclass(frozen=True)
class Pairs:
    """The log-probabilities of pairs of answers."""

    logps: Tensor
    """(P, 2): chosen and rejected, each the sum over its supervised tokens."""
    lengths: Tensor
    """(P, 2): supervised tokens."""
    gains: Tensor
    """(P, 2): the log-probabilities less those of the reference, if the objective has one."""
    kl: Tensor | None = None
    """(P,): the estimate of the KL divergence from the reference, per token, without gradients."""

    @property
    def mean_gains(self) -> Tensor:
        """(P, 2): per token."""
        return self.gains / self.lengths


class PairObjective(PairBatches, PreferenceObjective):
    """An objective for pairs. A subclass gives rewards, and the loss as a function of them."""

    beta: float
    sft_weight: float

    @abstractmethod
    def losses(self, pairs: Pairs) -> Tensor:
        """The loss of each pair, without the added cross-entropy. (P,)"""

    def rewards(self, pairs: Pairs) -> Tensor:
        """The quantities that the loss compares, for the measures. (P, 2)"""
        return self.beta * pairs.gains

    def outcome(self, model: nn.Module, batch: Mapping[str, Any]) -> Outcome:
        pairs = self.pairs(model, batch)
        losses = self.losses(pairs)
        if self.sft_weight:
            losses = losses - self.sft_weight * (pairs.logps / pairs.lengths)[:, 0]
        return Outcome(losses, self.measures(pairs))

    def pairs(self, model: nn.Module, batch: Mapping[str, Any]) -> Pairs:
        """The log-probabilities of a batch, from one forward of the model."""
        counts, tokens = row_lengths(batch), supervised_logps(model, batch)
        logps = summed(tokens, counts).view(-1, 2)
        return Pairs(logps, counts.view(-1, 2).to(logps), logps)

    def measures(self, pairs: Pairs) -> dict[str, Tensor]:
        """Rewards, margin, accuracy (a tie counts half) and, with a reference, the estimate of the KL divergence."""
        with torch.no_grad():
            chosen, rejected = self.rewards(pairs).unbind(1)
        margin = chosen - rejected
        found = {
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "margin": margin,
            "accuracy": (margin.sign() + 1) / 2,
        }
        return found if pairs.kl is None else {**found, "kl": pairs.kl}

    def terms(self, batch: Mapping[str, Any]) -> int:
        return len(row_lengths(batch)) // 2


class ReferencedPairs(PairObjective):
    """An objective for pairs that compares the model with a reference, token by token."""

    reference_options: ClassVar[Collection[str]] = ()
    """The values are log-probabilities, which depend on no option."""

    def pairs(self, model: nn.Module, batch: Mapping[str, Any]) -> Pairs:
        """The log-probabilities of a batch, and the difference from those of the reference.

        The estimate of the KL divergence is k2 of Schulman, Approximating KL Divergence (2020): half of the squared
        log-ratio of a token. It is never negative; the tokens are those of the data, not samples of the model.
        """
        counts, tokens = row_lengths(batch), supervised_logps(model, batch)
        ratios = tokens - reference_of(batch, tokens)  # (N,)
        logps, gains = (summed(values, counts).view(-1, 2) for values in (tokens, ratios))
        lengths = counts.view(-1, 2).to(logps)
        kl = summed(ratios.detach() ** 2 / 2, counts).view(-1, 2).sum(1) / lengths.sum(1)
        return Pairs(logps, lengths, gains, kl)

    def reference_values(self, model: nn.Module, batch: Mapping[str, Any]) -> Sequence[Mapping[str, Tensor]]:
        """The log-probabilities of the supervised tokens of both answers of each pair."""
        counts = row_lengths(batch).view(-1, 2).sum(1).tolist()
        return [{"logps": both} for both in supervised_logps(model, batch).split(counts)]
