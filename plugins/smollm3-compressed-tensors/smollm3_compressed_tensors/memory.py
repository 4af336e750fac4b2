"""The bytes of a layer, for the memory plan. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smollm3_compressed_tensors.scheme import FORMATS, GROUP_SIZES, NAME, described
from smollm3_finetune.api import (
    Env,
    LayerBytes,
    ModelSource,
    architecture_of,
    frozen_linear_bytes,
    layers_to_quantize,
    stacked_weights,
)

SCALE, ZERO, WORD = 4, 1, 4


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales and zero points of a layer with the options' scheme.

    While it dequantizes, a layer with 4 bits has the unpacked codes beside the weight. If no size of groups is stated,
    it is the largest that divides the row.
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


def options_for(options: Any, source: ModelSource) -> Any:
    """The options whose layers take as many bytes as those of a checkpoint, or with the groups that fit a model."""
    stored = described(source)
    if stored is None:
        if options.group_size is not None or (model := architecture_of(source)) is None:
            return options
        linear = layers_to_quantize(model, NAME, source, options.skip_modules)
        widths = {layer.in_features for layer in linear.values()}
        widths |= {stack.sizes[2] for stack in stacked_weights(model).values()}
        return replace(options, group_size=next((n for n in GROUP_SIZES if all(w % n == 0 for w in widths)), -1))
    groups = stored["config_groups"].values()
    weights: Mapping[str, Any] = next((g["weights"] for g in groups if isinstance(g, Mapping) and g.get("weights")), {})
    if weights.get("num_bits") == 4:  # integers or floats
        scheme = "W4A16" if weights.get("symmetric", True) else "W4A16_ASYM"
    else:
        scheme = "FP8A16" if weights.get("type") == "float" else "W8A16"
    return replace(options, scheme=scheme, group_size=weights.get("group_size") or -1)
