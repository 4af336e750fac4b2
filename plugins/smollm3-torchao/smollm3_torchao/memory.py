"""The bytes of a layer, for the memory plan. Imports neither torch nor torchao."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import Env, LayerBytes, frozen_linear_bytes

SCALE, ZERO = 4, 1


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales and zero points. torchao dequantizes with two copies of the float32 weight."""
    out, inputs = shape
    groups = 1 if options.group_size is None else inputs // options.group_size
    kept = out * inputs + out * groups * (SCALE + ZERO)
    transient = frozen_linear_bytes(out * inputs, env, peak=8) + SCALE * out * groups
    return LayerBytes(kept=kept, sharded=kept, transient=transient)
