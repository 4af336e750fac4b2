"""Optimizer `muon`: Muon for matrices, AdamW for the rest. This module must not import torch."""

from __future__ import annotations

from math import prod

from smollm3_finetune.api import OptimizerSpec, hookimpl
from smollm3_muon.options import MATRICES, MuonOptions


def state_bytes(options: MuonOptions, shape: tuple[int, ...], role: str) -> int:
    """One moving average for a matrix; two and the number of the step for what AdamW trains."""
    return 4 * prod(shape) if role in MATRICES and len(shape) == 2 else 8 * prod(shape) + 4


@hookimpl
def smollm3_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec(
            name="muon",
            same_since="0.1",
            summary="Muon: steps with orthogonal directions for matrices, AdamW for other parameters",
            factory="smollm3_muon.optimizer:MuonMaker",
            options="smollm3_muon.options:MuonOptions",
            state_bytes=state_bytes,
            api=2,
        )
    ]
