"""Outputs of bitsandbytes layers that adapters can change in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def own_outputs(layer: nn.Module) -> None:
    """Make the layer return outputs that can be changed in place.

    A layer with a bias returns a view of the output of bitsandbytes' autograd function. torch does not allow to change
    such a view in place, but AdaLoRA, C3A and GraLoRA do so with `y += …`.
    """
    layer.register_forward_hook(_clone_view)


def _clone_view(layer: nn.Module, args: Any, y: Tensor) -> Tensor | None:
    return y.clone() if y.requires_grad and y._is_view() else None
