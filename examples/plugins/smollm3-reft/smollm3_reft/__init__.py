"""Adapter `reft` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import AdapterCard, AdapterSpec, Op, hookimpl


@hookimpl
def smollm3_adapters() -> list[AdapterSpec]:
    return [
        AdapterSpec(
            name="reft",
            summary="LoReFT: edits hidden states in a low-rank subspace, and leaves the weights alone",
            factory="smollm3_reft.adapter:ReftAdapter",
            options="smollm3_reft.options:ReftOptions",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            packs=True,  # edits each token by itself
            merges=False,  # the residual stream between two blocks has no weight to merge into
            shards=False,  # not tested with FSDP
            suggests={"train.learning_rate": 2e-3},
            card=AdapterCard(title="LoReFT"),
            api=2,
        )
    ]
