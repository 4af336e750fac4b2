"""The options of the objective. Imported for help and checks, so it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option

BASE = "base"
"""The value of `teacher` for the run's own model."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    teacher: str = option(
        BASE, "Model that teaches, with the same tokenizer; base: the run's own model, neither quantized nor adapted."
    )
    top_k: int = option(64, "Tokens whose probabilities are taught at each position; all others are one more.", ge=1)
    divergence: Literal["forward-kl", "reverse-kl", "jsd"] = option(
        "forward-kl", "Divergence of teacher and student: KL(teacher || student), KL(student || teacher), or between."
    )
    beta: float = option(0.5, "With divergence=jsd: near 0 it behaves as forward-kl, near 1 as reverse-kl.", gt=0, lt=1)
    temperature: float = option(1.0, "Divides the logits of teacher and student in the divergence.", gt=0)
    loss_weight: float = option(
        1.0, "Weight of the divergence; the cross-entropy of the supervised tokens has 1 - loss_weight.", ge=0, le=1
    )
