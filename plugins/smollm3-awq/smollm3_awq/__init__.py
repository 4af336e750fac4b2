"""Quantizer `awq`: loads AWQ checkpoints of the version `gemm`, as AutoAWQ and gptqmodel write them.

This module contains only the descriptor; torch and transformers are imported when a run uses the quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_awq.memory import bytes_for, options_for
from smollm3_finetune.api import (
    DEQUANTIZABLE,
    IncompatibleError,
    ModelSource,
    Op,
    QuantizerSpec,
    hookimpl,
    packed_reasons,
    refuse_quantized,
)


def claims(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes an AWQ checkpoint."""
    stored = config.get("quantization_config")
    return isinstance(stored, Mapping) and stored.get("quant_method") == "awq"


def check(options: Any, source: ModelSource) -> None:
    """Raises IncompatibleError for a source that is not an AWQ checkpoint of the version gemm; reads no weights."""
    if not claims(source.config):
        refuse_quantized("awq", source, hint="leave --quant out to load it as it is")
        raise IncompatibleError(
            f"awq cannot load {source.ref!r}: it only loads checkpoints that are quantized already",
            hint="--quant gptq, --quant hqq or --quant compressed-tensors quantize a full-precision model",
        )
    stored = source.config["quantization_config"]
    layout = str(stored.get("version") or stored.get("checkpoint_format") or stored.get("format") or "gemm").lower()
    bits = stored.get("bits", stored.get("w_bit", 4))
    if layout != "gemm" or bits != 4:
        raise IncompatibleError(
            f"awq cannot load {source.ref!r}: it is of the version {layout} with {bits} bits, but only the "
            "version gemm with 4 bits is supported",
            hint="use a checkpoint of the version gemm, or the full-precision model",
        )


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="awq",
            same_since="0.1",
            summary="AWQ checkpoints (4 bits, version gemm), as AutoAWQ and gptqmodel write them; only read",
            factory="smollm3_awq.quantizer:AWQQuantizer",
            options="smollm3_awq.options:AWQOptions",
            provides=DEQUANTIZABLE | {Op.SHARDS},
            absent={
                **packed_reasons("weights are stored as 4-bit codes with scales"),
                Op.ROUND_TRIP: "AWQ checkpoints are only read",
            },
            claims=claims,
            check=check,
            bytes_for=bytes_for,
            options_for=options_for,
            api=2,
        )
    ]
