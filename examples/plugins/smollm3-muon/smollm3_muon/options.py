"""Options of `muon`, set with `--optimizer-opt KEY=VALUE`. Must not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import Role, option

MATRICES = frozenset({Role.DOWN, Role.UP, Role.WEIGHT})
"""The roles of the parameters that Muon trains, if they have two dimensions."""


@dataclass(frozen=True, kw_only=True)
class MuonOptions:
    ratio: float = option(1.0, "Learning rate of the matrices, as a multiple of train.learning_rate.", gt=0)
    scale: Literal["rms", "original"] = option(
        "rms",
        "Size of a step. rms: as large as AdamW's, so learning rates for AdamW apply. original: as published, for "
        "learning rates near 0.02.",
    )
    momentum: float = option(0.95, "Share of the moving average of the gradients that a step keeps.", ge=0, lt=1)
    nesterov: bool = option(True, "Look one step ahead with the moving average.")
    iterations: int = option(5, "Newton-Schulz iterations per step.", ge=1, le=99)
