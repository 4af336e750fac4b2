"""Quantizer `awq`: loads an AWQ checkpoint layer by layer."""

from __future__ import annotations

import torch
from torch import nn

from smollm3_awq import check
from smollm3_awq.linear import AWQLinear
from smollm3_awq.options import AWQOptions
from smollm3_finetune.api import (
    Base,
    BuildContext,
    LayerTensors,
    ModelError,
    ModelSource,
    load_into,
    ops_for_layers,
)


class AWQQuantizer:
    def __init__(self, options: AWQOptions) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """The frozen model on `ctx.device`; unquantized tensors are in `ctx.dtype`, scales are not rounded to it.

        Raises ModelError if a layer does not match the architecture, or its tensors do not match each other.
        """
        check(self.options, source)
        ops = ops_for_layers(AWQLinear, AWQLinear.dense, ctx.torch_dtype)
        return load_into(source, ctx, _make, name="awq", ops=ops, shape_of=_shape)


def _shape(tensors: LayerTensors) -> tuple[int, int]:
    inputs, words = tensors.shape("qweight")
    return words * 8, inputs


def _make(name: str, linear: nn.Linear, tensors: LayerTensors) -> AWQLinear:
    qweight, qzeros, scales = (tensors[part] for part in ("qweight", "qzeros", "scales"))
    groups, words = len(scales), linear.out_features // 8
    shapes = (linear.in_features, words), (groups, words), (groups, linear.out_features)
    if tuple(tuple(t.shape) for t in (qweight, qzeros, scales)) != shapes or linear.in_features % max(groups, 1):
        raise ModelError("the shapes of qweight, qzeros and scales do not match")
    if {qweight.dtype, qzeros.dtype} != {torch.int32} or not bool(scales.isfinite().all()):
        raise ModelError("its codes are not 32-bit words, or its scales are not finite", hint="download it again")
    return AWQLinear(qweight, qzeros, scales, linear.bias)
