"""The bytes of a layer, for the memory plan. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api import Env, LayerBytes, ModelSource, frozen_linear_bytes

GROUP_SIZE = 128
"""Input features that share a scale, if a checkpoint does not state it."""
SCALE, ZERO = 4, 1


@dataclass(frozen=True, kw_only=True)
class OfCheckpoint:
    """What a checkpoint states."""

    group_size: int = GROUP_SIZE


def options_for(options: Any, source: ModelSource) -> OfCheckpoint:
    """What the checkpoint states."""
    stored = source.config.get("quantization_config")
    about = stored if isinstance(stored, Mapping) else {}
    return OfCheckpoint(group_size=int(about.get("group_size") or about.get("q_group_size") or GROUP_SIZE))


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales and zero points. While it dequantizes, the layer has the unpacked codes beside the weight."""
    out, inputs = shape
    size = getattr(options, "group_size", GROUP_SIZE)
    groups = inputs // size if size > 0 and inputs % size == 0 else 1
    kept = out * inputs // 2 + out * groups * (SCALE + ZERO)
    return LayerBytes(kept=kept, sharded=kept, transient=frozen_linear_bytes(out * inputs, env, peak=5))
