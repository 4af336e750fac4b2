"""The bytes of a layer, for the memory plan. Imports no torch."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import Env, LayerBytes, frozen_linear_bytes

GROUP_SIZE = 128
"""Input features that share a scale in the checkpoints that AutoAWQ writes unless told otherwise."""
SCALE, ZERO = 4, 1


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales and zero points in groups of 128; of the whole row if it cannot be divided.

    While it dequantizes, the layer has the unpacked codes beside the weight.
    """
    out, inputs = shape
    groups = inputs // GROUP_SIZE if inputs % GROUP_SIZE == 0 else 1
    kept = out * inputs // 2 + out * groups * (SCALE + ZERO)
    return LayerBytes(kept=kept, sharded=kept, transient=frozen_linear_bytes(out * inputs, env, peak=5))
