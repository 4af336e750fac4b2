"""The bytes of a layer, for the memory plan. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Env, LayerBytes, frozen_linear_bytes

HELD_BITS = {2: 2, 3: 4, 4: 4, 8: 8}
"""Bits of a code in a checkpoint to bits of the code in memory."""
GROUP_SIZES = (128, 64, 32, 16)
"""The sizes of groups from which one is chosen if none is stated."""
SCALE, ZERO, INDEX = 4, 1, 8


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales, zero points and, with act-order, the order of the features.

    While it dequantizes, the layer has the unpacked codes beside the weight. If no size of groups is stated, it is
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
    transient = frozen_linear_bytes(out * inputs, env, peak=4 if options.bits == 8 else 5)
    return LayerBytes(kept=kept, sharded=kept, transient=transient)


def read_options(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options that a checkpoint states."""
    return {key: stored[key] for key in ("bits", "group_size", "desc_act", "sym") if key in stored}
