"""The quantizer: stores linear layers as small integers, one per byte, with one scale per group of inputs."""

from __future__ import annotations

import torch
from smollm3_finetune.api import (
    Base,
    BuildContext,
    ModelSource,
    frozen_linear,
    load_layerwise,
    ops_for_layers,
    options_dict,
)
from torch import Tensor, nn

from smollm3_quanto.options import QuantoOptions


class RoundedLinear(nn.Module):
    """y = x Wᵀ + b. W is dequantized in the forward and again in the backward pass, and never kept."""

    def __init__(self, linear: nn.Linear, bits: int, group_size: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        groups = linear.weight.detach().unflatten(1, (-1, group_size))  # (out, in) -> (out, groups, size)
        scale = groups.abs().amax(2, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)  # (out, groups, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("integers", (groups / scale).round().to(torch.int8))
        self.bias = linear.bias

    def dense(self) -> Tensor:
        """The weight (out, in) that the forward uses, as a new tensor."""
        scale, integers = self.scale, self.integers
        assert isinstance(scale, Tensor) and isinstance(integers, Tensor)
        return (integers.to(scale.dtype) * scale).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.dense, self.bias)


class QuantoQuantizer:
    def __init__(self, options: QuantoOptions) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """Load the model and round every linear layer except the head."""
        bits, group_size = self.options.bits, self.options.group_size
        return load_layerwise(
            source,
            ctx,
            name="quanto",
            replace=lambda linear: RoundedLinear(linear, bits, group_size or linear.in_features),
            ops=ops_for_layers(RoundedLinear, RoundedLinear.dense, ctx.torch_dtype),
            identity=(options_dict(self.options), ctx.dtype),
            group_size=group_size,
        )
