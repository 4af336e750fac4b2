"""Quantizer `quanto` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import DEQUANTIZABLE, QuantizerSpec, check_layerwise, hookimpl, packed_reasons


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="quanto",
            summary="groups of weights rounded to the nearest integer, while loading",
            factory="smollm3_quanto.quantizer:QuantoQuantizer",
            options="smollm3_quanto.options:QuantoOptions",
            api=2,  # version of the plugin contract that this was written for
            provides=DEQUANTIZABLE,  # forward, grad-input, read-weight: each must hold in any sequence of calls
            absent=packed_reasons("weights are stored as integers with scales"),
            check=check_layerwise("quanto"),  # refuses a checkpoint that is already quantized
        )
    ]
