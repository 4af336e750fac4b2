"""The bytes of a layer, for the memory plan. Imports neither torch nor bitsandbytes."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import Env, LayerBytes

BLOCK, NESTED_BLOCK = 64, 256
FLOAT = 4
TABLE, NESTED_TABLE = 16 * FLOAT, 256 * FLOAT


def bytes_4bit(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales of blocks and tables. The transient is the dequantized weight with its scales."""
    weights = shape[0] * shape[1]
    blocks = -(-weights // BLOCK)
    scales = FLOAT * blocks
    if options.double_quant:
        scales = blocks + FLOAT * -(-blocks // NESTED_BLOCK) + NESTED_TABLE + FLOAT  # the last: the offset
    kept = -(-weights // 2) + scales + TABLE
    wide = 2 if options.compute_dtype in ("bfloat16", "float16") else FLOAT
    return LayerBytes(kept=kept, sharded=kept, transient=wide * weights + FLOAT * blocks)


def bytes_8bit(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes and scales of rows. The transient is that of bfloat16: bitsandbytes multiplies in float32 there."""
    weights = shape[0] * shape[1]
    kept = weights + FLOAT * shape[0]
    return LayerBytes(kept=kept, sharded=kept, transient=10 * weights)
