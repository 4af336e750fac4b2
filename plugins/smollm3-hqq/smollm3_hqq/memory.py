"""The bytes of a layer, for the memory plan. Imports neither torch nor hqq."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import Env, LayerBytes

PER_NUMBER = {8: 1, 4: 2, 3: 10, 2: 4}
"""Bits of a code to the codes that hqq packs into one number: of 32 bits for 3-bit codes, otherwise of 8."""
FLOAT = 4


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales and zero points. The transient is that of hqq's dequantization: three times the float32 weight."""
    out, inputs = shape
    size = options.group_size or (inputs if options.axis == 1 else out)
    groups = out * inputs // size
    rows, columns = (groups, size) if options.axis == 1 else (size, groups)
    kept = -(-rows // PER_NUMBER[options.bits]) * columns * (4 if options.bits == 3 else 1) + 2 * FLOAT * groups
    return LayerBytes(kept=kept, sharded=kept, transient=3 * FLOAT * out * inputs)
