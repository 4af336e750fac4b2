"""The bytes of a layer, for the memory plan. Imports no torch."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import Env, LayerBytes

HELD_BITS = {2: 2, 3: 4, 4: 4, 8: 8}
"""Bits of a code in a checkpoint to bits of the code in memory."""
GROUP_SIZES = (128, 64, 32, 16)
"""The sizes of groups from which one is chosen if none is stated."""
SCALE, ZERO, INDEX = 4, 1, 8


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales, zero points and, with act-order, the order of the features.

    The transient is the weight in float32 and in the dtype of the run, each once. If no size of groups is stated, it is
    chosen for this layer alone; a run chooses one that fits all layers.
    """
    out, inputs = shape
    size = options.group_size
    if size is None:
        size = next((n for n in GROUP_SIZES if inputs % n == 0), -1)
    groups = 1 if size in (-1, inputs) else inputs // size if inputs % size == 0 else inputs
    kept = out * -(-inputs * HELD_BITS[options.bits] // 8) + out * groups * (SCALE + ZERO)
    if options.desc_act and groups > 1:
        kept += 2 * INDEX * inputs
    return LayerBytes(kept=kept, sharded=kept, transient=6 * out * inputs)
