"""The bytes of a layer, for the memory plan. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_compressed_tensors.scheme import FORMATS, GROUP_SIZES
from smollm3_finetune.api import Env, LayerBytes, frozen_linear_bytes

SCALE, ZERO, WORD = 4, 1, 4


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales and zero points of a layer with the options' scheme.

    While it dequantizes, a layer with 4 bits has the unpacked codes beside the weight. If no size of groups is stated,
    it is chosen for this layer alone; a run chooses one that fits all layers.
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
    transient = frozen_linear_bytes(out * inputs, env, peak=5 if bits == 4 else 4)
    return LayerBytes(kept=kept, sharded=kept, transient=transient)


def read_options(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options whose layers take as many bytes as those of a checkpoint; FP4 has codes of 4 bits, too."""
    groups = (stored.get("config_groups") or {}).values()
    weights = next((g["weights"] for g in groups if isinstance(g, Mapping) and g.get("weights")), None)
    if weights is None:
        return {}
    if weights.get("num_bits") == 4:
        scheme = "W4A16" if weights.get("symmetric", True) else "W4A16_ASYM"
    else:
        scheme = "FP8A16" if weights.get("type") == "float" else "W8A16"
    return {"scheme": scheme, "group_size": weights.get("group_size") or -1}
