"""Stands for a quantized layer whose weights are not read: it takes the memory that its quantizer states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smollm3_finetune.api import LayerBytes, LinearOps, Op


class _Allocates(torch.autograd.Function):  # type: ignore[misc]
    """x (…, in) to (…, out); the forward and the backward pass allocate `transient` bytes and free them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out_features: int, transient: int) -> Tensor:
        ctx.about = tuple(x.shape), transient
        scratch = x.new_empty(transient, dtype=torch.uint8)
        y = x.new_empty((*x.shape[:-1], out_features))
        del scratch
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        shape, transient = ctx.about
        scratch = gradient.new_empty(transient, dtype=torch.uint8)
        back = gradient.new_empty(shape)
        del scratch
        return back, None, None


class PlannedLinear(nn.Module):  # type: ignore[misc]
    """A quantized linear layer without weights."""

    def __init__(self, linear: nn.Linear, about: LayerBytes) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.about = about
        self.register_buffer("place", torch.empty(0, device=linear.weight.device), persistent=False)
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _Allocates.apply(x, self.out_features, self.about.transient)
        return y if self.bias is None else y + self.bias.to(y.dtype)


@dataclass(frozen=True)
class PlannedOps:
    """The operations that the quantizer states, of one layer."""

    layer: PlannedLinear
    ops: frozenset[Op]
    forward_rtol: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.layer.out_features, self.layer.in_features

    def read_weight(self) -> Tensor:
        return torch.empty(self.shape, dtype=torch.float32, device=self.layer.place.device)


def replace_layers(
    model: nn.Module, layers: Mapping[str, nn.Linear], bytes_of: Callable[[tuple[int, int]], LayerBytes]
) -> None:
    """Replace linear layers by layers that take the memory of quantized ones. `bytes_of` gets (out, in)."""
    for name, linear in layers.items():
        model.set_submodule(name, PlannedLinear(linear, bytes_of((linear.out_features, linear.in_features))))


def ops_of(provided: frozenset[Op]) -> Callable[[nn.Module], LinearOps | None]:
    """The `Base.ops_for` of a model with such layers."""
    return lambda layer: PlannedOps(layer, provided) if isinstance(layer, PlannedLinear) else None
