"""The bytes of a layer, for the memory plan. Imports no torch."""

from __future__ import annotations

from typing import Any

from smollm3_compressed_tensors.scheme import FORMATS, GROUP_SIZES
from smollm3_finetune.api import Env, LayerBytes

SCALE, ZERO, WORD = 4, 1, 4


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales and zero points of a layer with the options' scheme.

    The transient is the weight in float32 and in the dtype of the run, each once. If no size of groups is stated, it is
    chosen for this layer alone; a run chooses one that fits all layers.
    """
    out, inputs = shape
    bits, size = FORMATS[options.scheme], options.group_size
    if bits is None:
        size = -1
    elif size is None:
        size = next((n for n in GROUP_SIZES if inputs % n == 0), -1)
    groups = 1 if size == -1 else inputs // size
    codes = inputs if bits is None else WORD * -(-inputs * bits // 32)
    kept = out * codes + out * groups * (SCALE + ZERO * (options.scheme == "W4A16_ASYM"))
    return LayerBytes(kept=kept, sharded=kept, transient=6 * out * inputs)
