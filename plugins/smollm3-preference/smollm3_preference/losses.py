"""The losses as functions of log-probabilities. Every tensor is (P,), for P pairs or rows, in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_HALF = -0.6931471805599453


def smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    """The negative log-probability that a pair is right, if its answers are swapped with this probability."""
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def hinge(logits: Tensor) -> Tensor:
    """Source: Zhao et al., SLiC-HF (2023)."""
    return torch.relu(1 - logits)


def ipo(difference: Tensor, beta: float) -> Tensor:
    """Source: Azar et al., A General Theoretical Paradigm (2023), eq. 17, with means over tokens as TRL has it."""
    return (difference - 1 / (2 * beta)) ** 2


def robust(logits: Tensor, label_smoothing: float) -> Tensor:
    """Source: Chowdhury et al., Provably Robust DPO (2024), eq. 12."""
    right, wrong = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def apo_zero(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Of rewards. Source: D'Oosterlinck et al., Anchored Preference Optimization (2024), eq. 7."""
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Of rewards. Source: D'Oosterlinck et al. (2024), eq. 8."""
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def kto(reward: Tensor, desirable: Tensor, kl_reward: Tensor) -> Tensor:
    """Of rewards and of `kl_reward`, beta times the KL term (a number). desirable (P,) is boolean.

    Source: Ethayarajh et al., KTO (2024), eq. 8.
    """
    sign = torch.where(desirable, 1.0, -1.0).to(reward)
    return torch.sigmoid(-sign * (reward - kl_reward))


def log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean_logps).

    A probability of 1 up to rounding would have infinite odds: it is lowered by one unit of rounding.
    """
    below = mean_logps.clamp(max=-torch.finfo(mean_logps.dtype).eps)
    return below - torch.where(below < LOG_HALF, torch.log1p(-torch.exp(below)), torch.log(-torch.expm1(below)))


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Of mean log-probabilities. Source: Hong et al., ORPO (2024), eq. 7."""
    return -F.logsigmoid(log_odds(chosen) - log_odds(rejected))
