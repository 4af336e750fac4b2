"""The quantizer: linear layers whose weights are codes of optimum-quanto."""

from __future__ import annotations

from importlib.metadata import version

import torch
from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qtypes
from optimum.quanto.tensor.packed import pack_weights
from torch import Tensor, nn

from smollm3_finetune.api import (
    Base,
    BuildContext,
    FrozenTensor,
    IncompatibleError,
    ModelSource,
    frozen_linear,
    load_layerwise,
    ops_for_layers,
    options_dict,
    rounding_dtype,
)
from smollm3_quanto.options import BITS, QuantoOptions, group_size_of

TYPES = {"int8": "qint8", "float8": "qfloat8_e4m3fn", "int4": "qint4", "int2": "qint2"}
SMALLEST = 1e-12
"""Of a scale: quanto divides by zero where all weights of a group are equal."""


class QuantoLinear(nn.Module):  # type: ignore[misc]
    """y = x Wᵀ + b, with W (out, in) dequantized in the forward pass and again in the backward pass.

    The parts of quanto's tensors are held one by one, so that FSDP can divide them. quanto's own class unpacks int4
    on a CPU with an extension that it compiles into its installed package; this one unpacks with torch.
    """

    codes, scale, shift = FrozenTensor(), FrozenTensor(), FrozenTensor()

    def __init__(self, linear: nn.Linear, options: QuantoOptions) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.bits, kind = BITS[options.weights], qtypes[TYPES[options.weights]]
        weight = linear.weight.detach().float()  # so that the codes do not depend on the dtype of the run
        if self.bits == 8:
            scale = AbsmaxOptimizer()(weight, qtype=kind, axis=0).clamp(min=SMALLEST)  # (out, 1)
            codes = torch.ops.quanto.quantize_symmetric(weight, dtype=kind.dtype, axis=0, scale=scale)  # (out, in)
            self.codes, self.scale, self.shift = codes, scale, None
        else:
            size = group_size_of(options, linear.in_features)
            scale, shift = MaxOptimizer()(weight, qtype=kind, axis=0, group_size=size)  # (groups, 1) each
            scale = scale.clamp(min=SMALLEST)
            codes = torch.ops.quanto.quantize_affine(weight, self.bits, 0, size, scale, shift)  # (groups, size)
            self.codes, self.scale, self.shift = pack_weights(codes, self.bits), scale, shift

    def dense(self) -> Tensor:
        """The weight (out, in) that the forward uses, as a new tensor in float32."""
        if self.bits == 8:
            dense: Tensor = self.scale * self.codes.float()
            return dense
        shifts = range(0, 8, self.bits)  # a byte holds codes of groups that are far apart
        codes = torch.cat([(self.codes >> shift) & (2**self.bits - 1) for shift in shifts])[: len(self.scale)]
        return (self.scale * codes - self.shift).view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.dense, self.bias)


def check_layer(name: str, layer: nn.Linear) -> None:
    """Refuse a layer that quanto cannot quantize row by row."""
    if layer.out_features == 1:
        raise IncompatibleError(
            f"quanto does not quantize layers with one output, and {name} has one",
            hint=f"--quant-opt skip_modules={name.rpartition('.')[2]}",
        )


class QuantoQuantizer:
    def __init__(self, options: QuantoOptions) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """Load the model and quantize every linear layer except the head."""
        options = {**options_dict(self.options), "skip_modules": sorted(self.options.skip_modules)}
        return load_layerwise(
            source,
            ctx,
            name="quanto",
            replace=lambda linear: QuantoLinear(linear, self.options),
            ops=ops_for_layers(QuantoLinear, QuantoLinear.dense, ctx.torch_dtype),
            identity=(options, version("optimum-quanto"), rounding_dtype(source, ctx, seen_in="float32")),
            skip_modules=self.options.skip_modules,
            group_size=self.options.group_size,
            check_layer=check_layer,
        )
