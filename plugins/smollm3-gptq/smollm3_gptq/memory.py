"""The bytes of a layer, for the memory plan. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smollm3_finetune.api import Env, LayerBytes, ModelSource, architecture_of, frozen_linear_bytes, linear_layers

HELD_BITS = {2: 2, 3: 4, 4: 4, 8: 8}
"""Bits of a code in a checkpoint to bits of the code in memory."""
GROUP_SIZES = (128, 64, 32, 16)
"""The sizes of groups from which one is chosen if none is stated."""
SCALE, ZERO, INDEX = 4, 1, 8


def bytes_for(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, scales, zero points and, with act-order, the order of the features.

    While it dequantizes, the layer has the unpacked codes beside the weight. If no size of groups is stated, it is
    the largest that divides the row.
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


def options_for(options: Any, source: ModelSource) -> Any:
    """The options, with those that a checkpoint states, or with the groups that fit the layers of a model."""
    from smollm3_gptq.checkpoint import described

    stored = described(source)
    if stored is not None:
        has = {key: stored.get(key, getattr(options, key)) for key in ("bits", "group_size")}
        return replace(options, **has, desc_act=bool(stored.get("desc_act", False)))
    if options.group_size is not None or (model := architecture_of(source)) is None:
        return options
    inputs = {layer.in_features for layer in linear_layers(model)[0].values()}
    return replace(options, group_size=next((n for n in GROUP_SIZES if all(i % n == 0 for i in inputs)), -1))
