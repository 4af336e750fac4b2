"""Rounding to scales and zero points that hqq found once: the round trip of training, and the codes of `write`.

hqq's search takes up to 20 passes over a weight, too long for every step. It is done once for the weights of the base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from smollm3_hqq.linear import Linear
from smollm3_hqq.options import HQQOptions

PIECE = 131072
"""Weights that are rounded together: their intermediate values fit into the cache of a core."""


@dataclass(frozen=True)
class HQQRoundTrip:
    """The grid of a layer: `scale` and `zero`, (groups, 1) along axis 1 and (1, groups) along axis 0, float32."""

    covered: Callable[[PreTrainedModel], Collection[str]]
    options: HQQOptions

    def layers(self, model: PreTrainedModel) -> Collection[str]:
        return self.covered(model)

    def grid(self, layer: str, weight: Tensor) -> Mapping[str, Tensor]:
        found = searched(weight, self.options, str(weight.device))
        return {"scale": found.scale.clone(), "zero": found.zero.clone()}

    def apply(self, layer: str, weight: Tensor, grid: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return on_grid(weight.detach(), grid["scale"], grid["zero"], self.options, dequantize=True)


def searched(weight: Tensor, options: HQQOptions, device: str) -> Linear:
    """The layer that hqq makes of a weight (out, in), without a bias."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().to(torch.float32, copy=True), requires_grad=False)
    return Linear(linear, options, device)


def grouped(weight: Tensor, options: HQQOptions) -> Tensor:
    """The matrix of groups of a weight (out, in): a group is a row along axis 1, and a column along axis 0."""
    if options.group_size is None:
        return weight
    return weight.reshape(-1, options.group_size) if options.axis == 1 else weight.reshape(options.group_size, -1)


def on_grid(weight: Tensor, scale: Tensor, zero: Tensor, options: HQQOptions, *, dequantize: bool) -> Tensor:
    """The nearest codes on a grid, as the float32 matrix of groups; or their values (out, in) if `dequantize`."""
    groups = grouped(weight.contiguous(), options)
    out = torch.empty_like(groups)
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    rows = max(1, PIECE // groups.shape[1])
    for start in range(0, len(groups), rows):
        piece = slice(start, start + rows)
        s, z, i = (t[piece] if options.axis == 1 else t for t in (scale, zero, inverse))
        codes = torch.mul(groups[piece], i, out=out[piece]).add_(z).round_().clamp_(0, 2**options.bits - 1)
        codes.add_(0.0)  # an integer has no negative zero
        if dequantize:
            codes.sub_(z).mul_(s)
    return out.view(weight.shape) if dequantize else out
