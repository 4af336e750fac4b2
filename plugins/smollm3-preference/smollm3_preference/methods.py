"""The objectives for pairs of answers, each with the loss of its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smollm3_finetune.api import ConfigError
from smollm3_preference import losses
from smollm3_preference.objective import PairObjective, Pairs, ReferencedPairs
from smollm3_preference.options import APOOptions, CPOOptions, DPOOptions, ORPOOptions, SimPOOptions

if TYPE_CHECKING:
    from torch import Tensor


def check_smoothing(loss_type: str, label_smoothing: float, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError if a loss has no label smoothing and the options set it."""
    if label_smoothing and loss_type not in allowed:
        raise ConfigError(
            f"objective.label_smoothing={label_smoothing:g} has no effect with loss_type={loss_type}",
            hint=f"--objective-opt loss_type={allowed[0]}, or --objective-opt label_smoothing=0",
        )


class DPO(ReferencedPairs):
    """Rafailov et al., Direct Preference Optimization (2023)."""

    def __init__(self, options: DPOOptions) -> None:
        check_smoothing(options.loss_type, options.label_smoothing, ("sigmoid", "sigmoid_norm", "robust"))
        self.options, self.beta, self.sft_weight = options, options.beta, options.sft_weight

    def rewards(self, pairs: Pairs) -> Tensor:
        by_token = self.options.loss_type in ("sigmoid_norm", "ipo")
        return self.beta * (pairs.mean_gains if by_token else pairs.gains)

    def losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.rewards(pairs).unbind(1)
        logits, smoothing = chosen - rejected, self.options.label_smoothing
        match self.options.loss_type:
            case "hinge":
                return losses.hinge(logits)
            case "ipo":
                chosen, rejected = pairs.mean_gains.unbind(1)
                return losses.ipo(chosen - rejected, self.beta)
            case "robust":
                return losses.robust(logits, smoothing)
        return losses.smoothed(logits, smoothing)


class _APO(ReferencedPairs):
    def __init__(self, options: APOOptions) -> None:
        self.beta, self.sft_weight = options.beta, options.sft_weight


class APOZero(_APO):
    """D'Oosterlinck et al., Anchored Preference Optimization (2024): raises chosen answers, lowers rejected ones."""

    def losses(self, pairs: Pairs) -> Tensor:
        return losses.apo_zero(*self.rewards(pairs).unbind(1))


class APODown(_APO):
    """The same paper: lowers both answers, rejected ones more."""

    def losses(self, pairs: Pairs) -> Tensor:
        return losses.apo_down(*self.rewards(pairs).unbind(1))


class ORPO(PairObjective):
    """Hong et al., Monolithic Preference Optimization without Reference Model (2024)."""

    def __init__(self, options: ORPOOptions) -> None:
        self.beta, self.sft_weight = options.beta, options.sft_weight

    def rewards(self, pairs: Pairs) -> Tensor:
        return self.beta * pairs.mean_gains

    def losses(self, pairs: Pairs) -> Tensor:
        return self.beta * losses.odds_ratio(*pairs.mean_gains.unbind(1))


class SimPO(PairObjective):
    """Meng et al., Simple Preference Optimization with a Reference-Free Reward (2024)."""

    def __init__(self, options: SimPOOptions) -> None:
        self.options, self.beta, self.sft_weight = options, options.beta, options.sft_weight

    def rewards(self, pairs: Pairs) -> Tensor:
        return self.beta * pairs.mean_gains

    def losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.rewards(pairs).unbind(1)
        return losses.smoothed(chosen - rejected - self.options.gamma, self.options.label_smoothing)


class CPO(PairObjective):
    """Xu et al., Contrastive Preference Optimization (2024)."""

    def __init__(self, options: CPOOptions) -> None:
        check_smoothing(options.loss_type, options.label_smoothing, ("sigmoid",))
        self.options, self.beta, self.sft_weight = options, options.beta, options.sft_weight

    def rewards(self, pairs: Pairs) -> Tensor:
        return self.beta * (pairs.mean_gains if self.options.loss_type == "ipo" else pairs.gains)

    def losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.rewards(pairs).unbind(1)
        match self.options.loss_type:
            case "hinge":
                return losses.hinge(chosen - rejected)
            case "ipo":
                chosen, rejected = pairs.mean_gains.unbind(1)
                return losses.ipo(chosen - rejected, self.beta)
        return losses.smoothed(chosen - rejected, self.options.label_smoothing)
