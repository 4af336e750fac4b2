"""The bytes of a layer, for the memory plan. Imports neither torch nor bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smollm3_finetune.api import Env, LayerBytes, ModelSource

BLOCK, NESTED_BLOCK = 64, 256
FLOAT = 4
HALF = ("bfloat16", "float16")
TABLE, NESTED_TABLE = 16 * FLOAT, 256 * FLOAT


def bytes_4bit(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales of blocks and tables. The transient is the dequantized weight, and its scales if they are codes."""
    weights = shape[0] * shape[1]
    blocks = -(-weights // BLOCK)
    scales = FLOAT * blocks
    if options.double_quant:
        scales = blocks + FLOAT * -(-blocks // NESTED_BLOCK) + NESTED_TABLE + FLOAT  # the last: the offset
    kept = -(-weights // 2) + scales + TABLE
    compute = env.dtype if options.compute_dtype == "auto" else options.compute_dtype
    transient = (2 if compute in HALF else FLOAT) * weights + FLOAT * blocks * options.double_quant
    return LayerBytes(kept=kept, sharded=kept, transient=transient)


def options_4bit(options: Any, source: ModelSource) -> Any:
    """The options, with those that a checkpoint in 4 bits states."""
    stored = source.config.get("quantization_config")
    if not isinstance(stored, Mapping):
        return options
    return replace(options, double_quant=bool(stored.get("bnb_4bit_use_double_quant", False)))


def bytes_8bit(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes and scales of rows. The transient is the dequantized weight; in 16 bits, also the product in float32."""
    weights = shape[0] * shape[1]
    kept = weights + FLOAT * shape[0]
    return LayerBytes(
        kept=kept,
        sharded=kept,
        transient=(10 if env.dtype in HALF else 8 if env.dtype == "float64" else FLOAT) * weights,
    )
