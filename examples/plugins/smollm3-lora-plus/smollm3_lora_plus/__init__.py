"""Optimizers `lora-plus` and `lora-fa`, for low-rank adapters. This module must not import torch."""

from __future__ import annotations

from math import prod
from typing import Any

from smollm3_finetune.api import OptimizerSpec, Role, hookimpl

PAIR = {Role.DOWN, Role.UP}
"""A and B of a low-rank update."""


def adamw_bytes(options: Any, shape: tuple[int, ...], role: str) -> int:
    """Two moving averages, and the number of the step."""
    return 8 * prod(shape) + 4


def lora_fa_bytes(options: Any, shape: tuple[int, ...], role: str) -> int:
    """Two moving averages of what is trained."""
    return 0 if role == Role.DOWN else 8 * prod(shape)


@hookimpl
def smollm3_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec(
            name="lora-plus",
            same_since="0.1",
            summary="LoRA+: AdamW with a higher learning rate for the second matrix of each update",
            factory="smollm3_lora_plus.lora_plus:LoraPlusMaker",
            options="smollm3_lora_plus.options:LoraPlusOptions",
            needs_roles=PAIR,
            shards=True,
            state_bytes=adamw_bytes,
            api=2,
        ),
        OptimizerSpec(
            name="lora-fa",
            same_since="0.1",
            summary="LoRA-FA: freezes the first matrix of each update, which saves memory, and corrects the gradient",
            factory="smollm3_lora_plus.lora_fa:LoraFaMaker",
            options="smollm3_lora_plus.options:LoraFaOptions",
            needs_roles=PAIR,
            freezes={Role.DOWN},
            state_bytes=lora_fa_bytes,
            api=2,
        ),
    ]
