"""Options, set with `--optimizer-opt KEY=VALUE`. Must not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class AdamWOptions:
    beta1: float = option(0.9, "Share of the mean gradient that a step keeps.", ge=0, lt=1)
    beta2: float = option(0.999, "Share of the mean squared gradient that a step keeps.", ge=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class LoraPlusOptions(AdamWOptions):
    ratio: float = option(16.0, "Learning rate of B, and of vectors, as a multiple of that of A.", ge=1)
    eps: float = option(1e-8, "Added to the square root of the mean squared gradient.", gt=0)


@dataclass(frozen=True, kw_only=True)
class LoraFaOptions(AdamWOptions):
    scaling: float = option(2.0, "The factor of the adapter's update: alpha / rank for lora and dora.", gt=0)
    eps: float = option(1e-6, "Added to the square root of the mean squared gradient.", gt=0)
