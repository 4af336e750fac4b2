"""Adapter `reft` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import AdapterSpec, Op, hookimpl


@hookimpl
def smollm3_adapters() -> list[AdapterSpec]:
    return [
        AdapterSpec(
            name="reft",
            summary="a learned factor for each output of chosen layers",
            factory="smollm3_reft.adapter:ReftAdapter",
            options="smollm3_reft.options:ReftOptions",
            api=2,  # version of the plugin contract that this was written for
            needs={Op.FORWARD, Op.GRAD_INPUT},  # list only operations in use: each one excludes quantizers
            packs=True,  # rows that share a sequence do not influence each other
            suggests={"train.learning_rate": 1e-2},
        )
    ]
