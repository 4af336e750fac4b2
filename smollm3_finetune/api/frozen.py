"""The product with a frozen, dequantized weight. Imports torch: `smollm3_finetune.api` imports it when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class _Multiply(torch.autograd.Function):  # type: ignore[misc]
    """x Wᵀ, with W dequantized in the forward pass and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dequantize: Callable[[], Tensor]) -> Tensor:
        ctx.dequantize = dequantize
        return F.linear(x, dequantize().to(x.dtype))  # (…, in) @ (in, out) -> (…, out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients  # (…, out)
        with torch.no_grad():
            weight = ctx.dequantize().to(gradient.dtype)
        return gradient @ weight, None  # (…, out) @ (out, in) -> (…, in)


def multiply(x: Tensor, dequantize: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
    """See `smollm3_finetune.api.frozen_linear`."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:  # as torch.nn.functional.linear casts
        x = x.to(torch.get_autocast_dtype(x.device.type))
    y: Tensor = _Multiply.apply(x, dequantize)
    return y if bias is None else y + bias.to(y.dtype)
