"""The adapter: multiplies the output of chosen layers by a learned factor for each output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from smollm3_finetune.api import AdaptedLayers, Base, BuildContext, layers_to_adapt, load_parameters
from torch import Tensor, nn

from smollm3_reft.options import ReftOptions

PART = "output_scale"


class ReftAdapter:
    def __init__(self, options: ReftOptions) -> None:
        self.options = options

    def attach(self, base: Base, ctx: BuildContext, total_steps: int | None) -> AdaptedLayers:
        """Put fresh factors on `base`. Raises ConfigError if no layer matches."""
        adapted = AdaptedLayers(base)
        for name, layer in layers_to_adapt(base, [self.options.layers], option="layers").items():
            ones = torch.ones(layer.out_features, dtype=ctx.trained_dtype, device=ctx.device)
            adapted.add(name, PART, nn.Parameter(ones), scaled)
        return adapted

    def restore(self, base: Base, path: Path, ctx: BuildContext, total_steps: int | None) -> AdaptedLayers:
        """Put saved factors on `base`. Raises ModelError if they belong to other layers."""
        return self.attach(base, ctx, total_steps).restored(path, ctx)

    def merge(self, dense: Any, path: Path) -> Any:
        """Fold the factors into the weights of `dense`, a model with ordinary layers, and return it."""
        with torch.no_grad():
            for name, scale in load_parameters(path / AdaptedLayers.FILE).items():
                layer = dense.get_submodule(name.removesuffix(f".{PART}"))
                layer.weight.mul_(scale[:, None].to(layer.weight))  # (out, in) · (out, 1)
                if layer.bias is not None:
                    layer.bias.mul_(scale.to(layer.bias))
        return dense


def scaled(scale: nn.Parameter, x: Tensor, y: Tensor) -> Tensor:
    """The output of an adapted layer, from its input `x` and its own output `y` (…, out)."""
    return y * scale.to(y)
