"""Read a checkpoint in the format compressed-tensors into a model with `CompressedLinear` layers, layer by layer.

The tensors of a layer show how it is stored, so one checkpoint may have several formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from smollm3_compressed_tensors.linear import CompressedLinear
from smollm3_compressed_tensors.scheme import IGNORED, NAME, left_out
from smollm3_finetune.api import Base, BuildContext, LayerTensors, ModelError, ModelSource, load_into, ops_for_layers

PLAIN = {torch.int8: "signed", torch.float8_e4m3fn: "fp8"}


def load_checkpoint(source: ModelSource, stored: Mapping[str, Any], ctx: BuildContext) -> Base:
    """The frozen model on `ctx.device`; unquantized tensors are in `ctx.dtype`, scales in float32.

    Raises ModelError if a layer does not match the architecture, or its tensors do not match each other.
    """
    if rounds := left_out(stored):
        ctx.progress.say(f"note: {source.ref} also rounds {rounds}; this is left out here, only weights are rounded")
    weights = [g["weights"] for g in stored["config_groups"].values() if isinstance(g, Mapping) and g.get("weights")]
    blocks = next((w["block_structure"] for w in weights if w.get("block_structure")), None)
    make = partial(_make, blocks=blocks)
    ops = ops_for_layers(CompressedLinear, CompressedLinear.dense, ctx.torch_dtype)
    return load_into(source, ctx, make, name=NAME, ops=ops, shape_of=_shape, ignore=IGNORED)


def _shape(tensors: LayerTensors) -> tuple[int, int]:
    if "weight_shape" in tensors:
        out, inputs = tensors["weight_shape"].tolist()
    elif "weight_packed" in tensors:
        out, inputs = tensors.shape("weight_packed")
        inputs *= 2
    else:
        out, inputs = tensors.shape("weight")
    return int(out), int(inputs)


def _make(
    name: str, linear: nn.Linear, tensors: LayerTensors, blocks: tuple[int, int] | None = None
) -> CompressedLinear:
    out, inputs = linear.out_features, linear.in_features
    codes = tensors["weight_packed" if "weight_packed" in tensors else "weight"]
    scale, zero, index = tensors["weight_scale"].to(torch.float32), tensors.get("weight_zero_point"), None
    if codes.dtype == torch.int32:
        tensors.shape("weight_shape")
        bits = codes.shape[1] * 32 // inputs
        kind, width = f"int{bits}", -(-inputs * bits // 32)
        if zero is not None and zero.dtype == torch.int32:
            zero = _unpacked_zeros(zero, bits, out)
    elif codes.dtype == torch.uint8:
        kind, width = "fp4", -(-inputs // 2)
        scale = scale / tensors["weight_global_scale"].to(torch.float32)
    else:
        kind, width = PLAIN.get(codes.dtype, str(codes.dtype)), inputs
    if kind not in ("int4", "int8", "signed", "fp8", "fp4") or codes.shape != (out, width):
        raise ModelError(f"weights of {kind} and the shape {tuple(codes.shape)} do not make a layer {(out, inputs)}")
    scale = scale.view(-1, 1) if scale.ndim < 2 else scale
    if "weight_g_idx" in tensors:
        index = _index(tensors["weight_g_idx"], inputs, scale.shape[1])
    elif blocks is not None and scale.shape == (-(-out // blocks[0]), -(-inputs // blocks[1])):
        scale = scale.repeat_interleave(blocks[0], 0)[:out]
        if inputs % scale.shape[1]:
            index = (torch.arange(inputs) // blocks[1]).int()
    if index is None and inputs % scale.shape[1]:
        raise ModelError(f"{inputs} input features cannot be divided into {scale.shape[1]} groups")
    if len(scale) not in (1, out) or not bool(scale.isfinite().all()):
        raise ModelError("its scales are not finite, or do not match the weight", hint="copy or download it again")
    if zero is not None:
        zero = zero.to(torch.int8).view(-1, scale.shape[1])
    return CompressedLinear(
        codes.contiguous(), scale, kind=kind, in_features=inputs, zero=zero, index=index, bias=linear.bias
    )


def _unpacked_zeros(words: Tensor, bits: int, out: int) -> Tensor:
    """Zero points (out, groups) from words (out · bits / 32, groups), which are packed down the columns."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    zeros = (words[:, None, :] >> shifts[None, :, None]) & ((1 << bits) - 1)
    return zeros.flatten(0, 1)[:out] - (1 << (bits - 1))


def _index(index: Tensor, inputs: int, groups: int) -> Tensor | None:
    """The group of each feature; None if groups are blocks of equal size, or if there is no order (all −1)."""
    if bool((index < 0).all()) or torch.equal(index.long(), torch.arange(inputs) // -(-inputs // groups)):
        return None
    if index.shape != (inputs,) or int(index.min()) < 0 or int(index.max()) >= groups:
        raise ModelError("its g_idx names groups that do not exist")
    return index.int()
