"""GPTQ quantizer for smollm3: loads GPTQ checkpoints, and quantizes full-precision models with gptqmodel.

This module contains only the descriptor; torch, transformers and gptqmodel are imported when a run uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smollm3_finetune.api import DEQUANTIZABLE, Env, ModelSource, Op, QuantizerSpec, hookimpl, packed_reasons
from smollm3_gptq.memory import bytes_for, options_for

ONE_WAY = (
    "kernel=gptqmodel permanently repacks its weights for inference at the first evaluation; kernel=dequantize does not"
)

NOT_DIVIDED = "kernel=gptqmodel keeps its weights in buffers, which it repacks; kernel=dequantize does not"


def claims(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a checkpoint written by gptqmodel, AutoGPTQ or optimum."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "gptq"


def refine(spec: QuantizerSpec, options: Any, env: Env) -> QuantizerSpec:
    """gptqmodel's own kernels support only the forward; on a CPU, those for 2, 3 and 8 bits must be compiled first."""
    if options.kernel != "gptqmodel":
        return spec
    absent = {Op.GRAD_INPUT: ONE_WAY, Op.READ_WEIGHT: ONE_WAY, Op.ROUND_TRIP: ONE_WAY, Op.SHARDS: NOT_DIVIDED}
    if env.device == "cpu" and options.bits in (2, 3, 8) and "c++" not in env.tools:
        absent[Op.FORWARD] = f"gptqmodel's kernel for {options.bits} bits needs a C++ compiler on a CPU"
    return replace(spec.without(absent), bytes_for=None)


def check(options: Any, source: ModelSource) -> None:
    """Raises an error if the source is quantized in another way or has an unsupported format; reads no weights."""
    from smollm3_gptq.checkpoint import described, refuse_contradictions

    stored = described(source)
    if stored is not None:
        refuse_contradictions(source, stored, options)


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="gptq",
            same_since="0.1",
            aliases=("auto-gptq",),
            summary="GPTQ: 2 to 8-bit weights fitted to calibration rows; loads GPTQ checkpoints, or quantizes first",
            factory="smollm3_gptq.quantizer:GPTQQuantizer",
            options="smollm3_gptq.options:GPTQOptions",
            provides=DEQUANTIZABLE | {Op.ROUND_TRIP, Op.SHARDS},
            absent=packed_reasons("weights are stored as low-bit codes with scales"),
            refine=refine,
            claims=claims,
            marker_files=("quantize_config.json",),
            needs_calibration=True,
            check=check,
            bytes_for=bytes_for,
            options_for=options_for,
            api=2,
        )
    ]
