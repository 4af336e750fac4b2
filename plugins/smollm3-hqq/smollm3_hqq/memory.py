"""The bytes of a layer, for the memory plan. Imports neither torch nor hqq."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import Env, LayerBytes, ModelSource

PER_NUMBER = {8: 1, 4: 2, 3: 10, 2: 4}
"""Bits of a code to the codes that hqq packs into one number: of 32 bits for 3-bit codes, otherwise of 8."""
FLOAT = 4


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales and zero points. The transient is that of hqq's dequantization: the unpacked codes, their
    difference from the zero points and its product with the scales, all in float32."""
    out, inputs = shape
    size = options.group_size or (inputs if options.axis == 1 else out)
    groups = out * inputs // size
    rows, columns = (groups, size) if options.axis == 1 else (size, groups)
    numbers = -(-rows // PER_NUMBER[options.bits]) * columns
    kept = numbers * (4 if options.bits == 3 else 1) + 2 * FLOAT * groups
    unpacked = FLOAT * numbers * PER_NUMBER[options.bits]
    return LayerBytes(kept=kept, sharded=kept, transient=unpacked + 2 * FLOAT * out * inputs)


def options_for(options: Any, source: ModelSource) -> Any:
    """The options, or those of a checkpoint."""
    from smollm3_hqq.checkpoint import described, stored_options

    stored = described(source.config)
    return options if stored is None else stored_options(source, stored)
