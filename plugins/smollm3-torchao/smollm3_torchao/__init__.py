"""Quantizer `torchao-int8`: 8-bit weights by torchao, quantized while a model is loaded.

This module holds only the descriptor; torch, transformers and torchao are imported when a run names the quantizer.
"""

from __future__ import annotations

from smollm3_finetune.api import DEQUANTIZABLE, Op, QuantizerSpec, Requires, check_layerwise, hookimpl
from smollm3_torchao.memory import bytes_for

HIDDEN = "`.weight` is a tensor of torchao's own class with 8-bit codes inside"
HINT = "use the full-precision checkpoint; checkpoints quantized by torchao cannot be loaded"


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="torchao-int8",
            same_since="0.1",
            summary="torchao's weight-only int8: 8-bit weights, a scale for each row or group, made while loading",
            factory="smollm3_torchao.quantizer:TorchaoInt8Quantizer",
            options="smollm3_torchao.options:TorchaoInt8Options",
            requires=Requires(distributions=("torchao>=0.18,<0.19",)),
            provides=DEQUANTIZABLE | {Op.ROUND_TRIP, Op.SHARDS},
            absent={
                Op.DENSE: f"{HIDDEN}, which cannot be replaced by other values",
                Op.GRAD_WEIGHT: f"{HIDDEN}, which cannot take a gradient step",
            },
            check=check_layerwise("torchao-int8", HINT),
            bytes_for=bytes_for,
            api=2,
        )
    ]
