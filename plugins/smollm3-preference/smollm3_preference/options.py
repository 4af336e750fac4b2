"""The options of the objectives, with the names of the papers and of TRL. Imported for help, so it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option

BETA = "Strength of the comparison: a larger value keeps the model closer to the reference."
SCALE = "Factor of the log-probabilities that the loss compares."
REFERENCE = (
    "What the model is compared with. start: the weights when the run began; base: the model without its adapter, also "
    "if the run continues one. full, and LoRA with init=pissa or init=olora, change the base and cannot use base."
)
SFT = "Weight of an added term: the cross-entropy of the {} answer, per token (TRL: {})."
SMOOTHING = "Assumed probability that a pair has its answers swapped."


@dataclass(frozen=True, kw_only=True)
class DPOOptions:
    loss_type: Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust"] = option(
        "sigmoid", "Function of the difference of the rewards; sigmoid_norm and ipo compare means over tokens."
    )
    beta: float = option(0.1, BETA + " With ipo, it is the paper's tau.", gt=0)
    label_smoothing: float = option(
        0.0, SMOOTHING + " For sigmoid and sigmoid_norm (conservative DPO), and robust.", ge=0, lt=0.5
    )
    reference: Literal["start", "base"] = option("start", REFERENCE)
    sft_weight: float = option(0.0, SFT.format("chosen", "rpo_alpha"), ge=0)


@dataclass(frozen=True, kw_only=True)
class APOOptions:
    beta: float = option(0.05, BETA + " SmolLM3 was aligned with apo-zero, 0.05, and train.learning_rate=1e-6.", gt=0)
    reference: Literal["start", "base"] = option("start", REFERENCE)
    sft_weight: float = option(0.0, SFT.format("chosen", "rpo_alpha"), ge=0)


@dataclass(frozen=True, kw_only=True)
class KTOOptions:
    beta: float = option(0.1, BETA, gt=0)
    desirable_weight: float = option(1.0, "Weight of rows whose answer is good.", ge=0)
    undesirable_weight: float = option(1.0, "Weight of rows whose answer is bad.", ge=0)
    reference: Literal["start", "base"] = option("start", REFERENCE)
    sft_weight: float = option(0.0, "Weight of an added term: the cross-entropy of good answers, per token.", ge=0)


@dataclass(frozen=True, kw_only=True)
class ORPOOptions:
    beta: float = option(0.1, "Weight of the odds ratio (the paper's lambda).", ge=0)
    sft_weight: float = option(
        1.0, "Weight of the cross-entropy of the chosen answer, per token; the paper's loss has 1.", ge=0
    )


@dataclass(frozen=True, kw_only=True)
class SimPOOptions:
    beta: float = option(2.0, "Factor of the mean log-probability of a token, which the loss compares.", gt=0)
    gamma: float = option(1.0, "Margin by which the chosen answer should be better (TRL: simpo_gamma).", ge=0)
    label_smoothing: float = option(0.0, SMOOTHING, ge=0, lt=0.5)
    sft_weight: float = option(0.0, SFT.format("chosen", "cpo_alpha"), ge=0)


@dataclass(frozen=True, kw_only=True)
class CPOOptions:
    loss_type: Literal["sigmoid", "hinge", "ipo"] = option(
        "sigmoid", "Function of the difference of the log-probabilities; ipo compares means over tokens."
    )
    beta: float = option(0.1, SCALE + " With ipo, it is the paper's tau.", gt=0)
    label_smoothing: float = option(0.0, SMOOTHING + " For sigmoid.", ge=0, lt=0.5)
    sft_weight: float = option(1.0, SFT.format("chosen", "cpo_alpha"), ge=0)
