"""What `torchao-int8` does to a weight: quantize, then dequantize, fast enough for every step of training.

Equal bit for bit to `Int8Linear.dense`, without torchao's own tensor class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

PIECE = 131072
"""Weights that are quantized together: their intermediate values fit into the cache of a core."""
LEAST_SCALE = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Int8RoundTrip:
    """There is no grid: scales are found again from the weights."""

    covered: Callable[[PreTrainedModel], Collection[str]]
    group_size: int | None

    def layers(self, model: PreTrainedModel) -> Collection[str]:
        return self.covered(model)

    def grid(self, layer: str, weight: Tensor) -> Mapping[str, Tensor]:
        return {}

    def apply(self, layer: str, weight: Tensor, grid: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return rounded(weight.detach(), self.group_size)


def rounded(weight: Tensor, group_size: int | None) -> Tensor:
    """The weight (out, in) as the quantized layer dequantizes it, as a new float32 tensor.

    Source: torchao 0.18 `quantization.quant_primitives`: symmetric, with 255 steps from the lowest code to the highest.
    """
    groups = weight.contiguous().view(-1, group_size or weight.shape[1])
    out = torch.empty_like(groups)
    rows = max(1, PIECE // groups.shape[1])
    for start in range(0, len(groups), rows):
        _write(groups[start : start + rows], out[start : start + rows])
    return out.view(weight.shape)


def _write(groups: Tensor, out: Tensor) -> None:
    scale = groups.abs().amax(1, keepdim=True).div_(127.5).clamp_(min=LEAST_SCALE)
    codes = torch.mul(groups, 1.0 / scale, out=out).round_().clamp_(-128, 127)
    codes.add_(0.0).mul_(scale)  # adding zero: an integer has no negative zero
