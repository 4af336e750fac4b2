"""bitsandbytes quantizers: `bnb-4bit` (NF4, FP4) and `bnb-8bit` (LLM.int8), on CPU and on CUDA.

This module contains only descriptors; torch, transformers and bitsandbytes are imported when a run uses one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_bitsandbytes.memory import bytes_4bit, bytes_8bit, options_4bit
from smollm3_finetune.api import DEQUANTIZABLE, Env, Op, QuantizerSpec, Requires, hookimpl, packed_reasons

REQUIRES = Requires(distributions=("bitsandbytes>=0.49", "accelerate>=1.1"))

PROVIDED = DEQUANTIZABLE | {Op.ROUND_TRIP, Op.SHARDS}

DEVICES = {4: ("cpu", "cuda", "xpu", "hpu", "mps"), 8: ("cpu", "cuda", "xpu", "hpu")}
"""Number of bits to the device types for which bitsandbytes 0.50 has kernels."""


def claims_4bit(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a checkpoint that bitsandbytes quantized to 4 bits."""
    return _load_in(config, "load_in_4bit")


def claims_8bit(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a checkpoint that bitsandbytes quantized to 8 bits."""
    return _load_in(config, "load_in_8bit")


def _load_in(config: Mapping[str, Any], key: str) -> bool:
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return False
    # Checkpoints written by transformers < 4.33 do not state the method.
    method = quantization.get("quant_method", "bitsandbytes")
    return method == "bitsandbytes" and bool(quantization.get(key, quantization.get(f"_{key}", False)))


def refine_4bit(spec: QuantizerSpec, options: Any, env: Env) -> QuantizerSpec:
    """All operations are absent on a device without 4-bit kernels; the options have no effect."""
    return spec.without(_no_kernels(4, env))


def refine_8bit(spec: QuantizerSpec, options: Any, env: Env) -> QuantizerSpec:
    """All operations are absent on a device without 8-bit kernels; the options have no effect."""
    return spec.without(_no_kernels(8, env))


def _no_kernels(bits: int, env: Env) -> dict[Op, str]:
    if env.device in DEVICES[bits]:
        return {}
    reason = f"bitsandbytes has no {bits}-bit kernels for {env.device}, only for {', '.join(DEVICES[bits])}"
    return dict.fromkeys(PROVIDED, reason)


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="bnb-4bit",
            same_since="0.1",
            aliases=("bnb", "bitsandbytes"),
            summary="bitsandbytes NF4 or FP4 (QLoRA): 4-bit weights in blocks of 64, quantized while loading",
            factory="smollm3_bitsandbytes.four_bit:Bnb4bitQuantizer",
            options="smollm3_bitsandbytes.options:Bnb4bitOptions",
            requires=REQUIRES,
            provides=PROVIDED,
            absent=packed_reasons("weights are stored as 4-bit codes with scales"),
            refine=refine_4bit,
            claims=claims_4bit,
            bytes_for=bytes_4bit,
            options_for=options_4bit,
            api=2,
        ),
        QuantizerSpec(
            name="bnb-8bit",
            same_since="0.1",
            summary="bitsandbytes LLM.int8: 8-bit weights, one scale per row, quantized while loading",
            factory="smollm3_bitsandbytes.eight_bit:Bnb8bitQuantizer",
            options="smollm3_bitsandbytes.options:Bnb8bitOptions",
            requires=REQUIRES,
            provides=PROVIDED,
            absent=packed_reasons("weights are stored as 8-bit codes with scales"),
            refine=refine_8bit,
            claims=claims_8bit,
            bytes_for=bytes_8bit,
            api=2,
        ),
    ]
