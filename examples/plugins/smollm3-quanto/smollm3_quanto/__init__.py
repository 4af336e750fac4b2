"""Quantizer `quanto` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import (
    DEQUANTIZABLE,
    ConfigError,
    ModelSource,
    Op,
    QuantizerSpec,
    Requires,
    check_layerwise,
    hookimpl,
    packed_reasons,
)
from smollm3_quanto.options import BITS, QuantoOptions, bytes_for

check_source = check_layerwise("quanto")


def check(options: QuantoOptions, source: ModelSource) -> None:
    """Refuse a source that is quantized already, and groups that do not fit. Reads no weights."""
    if options.group_size is not None and BITS[options.weights] == 8:
        raise ConfigError(
            f"quanto: group_size={options.group_size} is for int4 and int2; {options.weights} has a scale for each row",
            hint="--quant-opt weights=int4, or leave group_size out",
        )
    check_source(options, source)


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="quanto",
            summary="optimum-quanto: weights in int8, float8, int4 or int2, quantized while loading",
            factory="smollm3_quanto.quantizer:QuantoQuantizer",
            options="smollm3_quanto.options:QuantoOptions",
            requires=Requires(distributions=("optimum-quanto>=0.2.7,<0.3",)),
            provides=DEQUANTIZABLE | {Op.SHARDS},
            absent=packed_reasons("weights are stored as codes with scales"),
            check=check,
            bytes_for=bytes_for,
            api=2,
        )
    ]
