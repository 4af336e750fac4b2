"""GPTQ quantizer for smollm3: reads GPTQ checkpoints, and makes them from full-precision models through gptqmodel.

Only the descriptor is here; torch, transformers and gptqmodel are imported when a run names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import DEQUANTIZABLE, Env, ModelSource, Op, QuantizerSpec, hookimpl, packed_reasons

ONE_WAY = (
    "kernel=gptqmodel repacks its weights for inference at the first evaluation, for good; kernel=dequantize keeps them"
)


def claims(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a checkpoint which gptqmodel, AutoGPTQ or optimum wrote."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "gptq"


def refine(spec: QuantizerSpec, options: Any, env: Env) -> QuantizerSpec:
    """gptqmodel's own kernels only run forward, and on a CPU those for 2, 3 and 8 bits are compiled first."""
    if options.kernel != "gptqmodel":
        return spec
    absent = {Op.GRAD_INPUT: ONE_WAY, Op.READ_WEIGHT: ONE_WAY}
    if env.device == "cpu" and options.bits in (2, 3, 8) and "c++" not in env.tools:
        absent[Op.FORWARD] = f"gptqmodel's kernel for {options.bits} bits needs a C++ compiler on a CPU"
    return spec.without(absent)


def check(options: Any, source: ModelSource) -> None:
    """Refuse a source that is quantized otherwise, or is none of a format that can be read; reads no weights."""
    from smollm3_gptq.checkpoint import described, refuse_contradictions

    stored = described(source)
    if stored is not None:
        refuse_contradictions(source, stored, options)


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="gptq",
            aliases=("auto-gptq",),
            summary="GPTQ: 2 to 8-bit weights fitted to calibration rows; reads checkpoints, or makes them first",
            factory="smollm3_gptq.quantizer:GPTQQuantizer",
            options="smollm3_gptq.options:GPTQOptions",
            provides=DEQUANTIZABLE,
            absent=packed_reasons("weights are stored as codes of few bits with scales"),
            refine=refine,
            claims=claims,
            marker_files=("quantize_config.json",),
            needs_calibration=True,
            check=check,
            api=1,
        )
    ]
