"""What a layer of bitsandbytes gives, so that an adapter may add to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def own_outputs(layer: nn.Module) -> None:
    """Make the layer's outputs tensors of their own from now on.

    A layer with a bias gives a view of what bitsandbytes' autograd function made, and torch refuses to change such a
    view in place, as AdaLoRA, C3A and GraLoRA do with `y += …`.
    """
    layer.register_forward_hook(_own)


def _own(layer: nn.Module, args: Any, y: Tensor) -> Tensor | None:
    return y.clone() if y.requires_grad and y._is_view() else None
