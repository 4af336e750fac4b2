"""Quantizer `hqq`: half-quadratic quantization by the library hqq, while a model is loaded.

This module holds only the descriptor; torch, transformers and hqq are imported when a run names the quantizer.
"""

from __future__ import annotations

from smollm3_finetune.api import DEQUANTIZABLE, QuantizerSpec, Requires, check_layerwise, hookimpl, packed_reasons


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="hqq",
            same_since="0.1",
            summary="half-quadratic quantization (HQQ) to 8, 4, 3 or 2 bits while loading, without calibration",
            factory="smollm3_hqq.quantizer:HQQQuantizer",
            options="smollm3_hqq.options:HQQOptions",
            requires=Requires(distributions=("hqq>=0.2.8,<0.3",)),
            provides=DEQUANTIZABLE,
            absent=packed_reasons("weights are stored as codes of few bits with scales"),
            check=check_layerwise(
                "hqq",
                "use the full-precision checkpoint; checkpoints saved by hqq cannot be loaded",
                along=lambda options: "in_features" if options.axis == 1 else "out_features",
            ),
            api=1,
        )
    ]
