"""A linear layer with torchao's 8-bit weight, which dequantizes and multiplies, and what can be done with it.

Source: torchao 0.18 `quantization.quantize_.workflows.int8.int8_tensor`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from smollm3_finetune.api import DequantizingOps, LinearOps
from smollm3_torchao.library import Int8Tensor, Int8WeightOnlyConfig, PerGroup, PerRow, quantize_


class _Multiply(torch.autograd.Function):  # type: ignore[misc]
    """x (…, in) to (…, out) with W dequantized, and once more in the backward.

    torchao's own multiplication multiplies by the codes first and by the scales of rows last, which is another
    rounding than that of the weight it gives back dequantized; and autograd keeps, for each layer until its backward,
    the codes as a dense matrix in the dtype of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any) -> Tensor:
        ctx.weight = weight
        return functional.linear(x, weight.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients  # (…, out); under autocast not in the dtype of x
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None


class Int8Linear(nn.Linear):  # type: ignore[misc]
    """y = x Wᵀ + b, with W (out, in) an `Int8Tensor`."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Multiply.apply(x, self.weight)
        return y if self.bias is None else y + self.bias


def quantize(layer: nn.Linear, group_size: int | None, device: str) -> None:
    """Make `layer` an `Int8Linear` on `device`, its weight quantized.

    torchao rounds the float32 values whatever the model's dtype, so that the codes do not depend on it; it takes no
    float64.
    """
    layer.weight = nn.Parameter(layer.weight.detach().to(device, torch.float32), requires_grad=False)
    granularity = PerRow() if group_size is None else PerGroup(group_size)
    quantize_(layer, Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False))
    layer.__class__ = Int8Linear


def weight_of(layer: Any) -> Tensor:
    """Code · scale (out, in), as a new float32 tensor."""
    weight: Tensor = layer.weight.dequantize()
    return weight


def ops_in(dtype: torch.dtype) -> Callable[[nn.Module], LinearOps | None]:
    """`Base.ops_for` of a model that computes in `dtype`."""

    def ops_for(layer: nn.Module) -> LinearOps | None:
        mine = isinstance(getattr(layer, "weight", None), Int8Tensor)
        return DequantizingOps(layer, weight_of, dtype) if mine else None

    return ops_for
