"""A linear layer whose weight is held as GPTQ codes and dequantized where it is needed, in forward and backward alike.

gptqmodel's own kernels are not used here. Its CPU kernel repacks itself at the first evaluation and loses its
gradient for good; its PyTorch kernel lets autograd keep every dequantized weight until the backward pass, which
takes as much memory as the dense model. Here the backward pass dequantizes once more and keeps nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smollm3_finetune.api import DequantizingOps, LinearOps
from smollm3_gptq.packing import HELD_BITS, pack_bytes, unpack_bytes, unpack_words


class GPTQLinear(nn.Module):  # type: ignore[misc]
    """y = x Wᵀ + b with W[o, i] = scale[o, g] · (code[o, i] − zero[o, g]), g the group of input feature i.

    Source: Frantar et al., GPTQ, arXiv:2210.17323; the layout of checkpoints is AutoGPTQ's.
    """

    def __init__(self, in_features: int, out_features: int, bits: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self.bias: nn.Parameter | None = None
        self.codes: Tensor
        self.scales: Tensor
        self.zeros: Tensor
        self.order: Tensor | None
        self.place: Tensor | None
        for name in ("codes", "scales", "zeros", "order", "place"):
            self.register_buffer(name, None, persistent=False)

    def fill(self, qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor, *, zeros_less_one: bool) -> None:
        """Take the tensors of a checkpoint, all on the device where the layer will be.

        qweight (in · bits / 32, out) and qzeros (groups, out · bits / 32) are int32 words, scales (groups, out) are
        floating point, g_idx (in,) is the group of each input feature. Checkpoints of format v1 hold each zero point
        less one. Input features are held sorted by group, so that a group is a block of columns.
        """
        codes = unpack_words(qweight, self.bits).T  # (out, in)
        zeros = unpack_words(qzeros.T.contiguous(), self.bits).T[:, : self.out_features]  # (groups, out)
        if zeros_less_one:
            zeros = (zeros + 1) & ((1 << self.bits) - 1)
        groups = g_idx.long()
        if bool((groups[1:] < groups[:-1]).any()):
            self.order = torch.argsort(groups, stable=True)
            self.place = torch.argsort(self.order)
            codes, groups = codes[:, self.order], groups[self.order]
        counts = torch.bincount(groups, minlength=len(scales))
        self.group_size = int(counts.max())
        if bool((counts != self.group_size).any()):  # a last group that is not full, or groups of many sizes
            self.group_size = 1
            scales, zeros = scales[groups], zeros[groups]
        self.codes = pack_bytes(codes.contiguous(), HELD_BITS[self.bits])
        self.scales = scales.T.to(torch.float32).contiguous()  # (out, groups)
        self.zeros = zeros.T.contiguous()

    def sorted_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in), its columns sorted by group, as a new tensor.

        The product of a float16 scale and a difference of codes is exact in float32; `dtype` rounds it.
        """
        codes = unpack_bytes(self.codes, HELD_BITS[self.bits], self.in_features)
        weight = codes.to(torch.float32).view(self.out_features, -1, self.group_size)
        weight.sub_(self.zeros[..., None]).mul_(self.scales[..., None])
        return weight.view(self.out_features, self.in_features).to(dtype)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as a new tensor, in the order of the input features."""
        weight = self.sorted_weight(dtype)
        return weight if self.place is None else weight[:, self.place]

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, out), in the dtype of `x`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.order is not None:
            x = x[..., self.order]
        y: Tensor = _Multiply.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"


class _Multiply(torch.autograd.Function):  # type: ignore[misc]
    """x Wᵀ for a frozen W that is dequantized in each direction and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: GPTQLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.sorted_weight(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.sorted_weight(grad.dtype), None


def ops_in(compute: torch.dtype) -> Any:
    """`Base.ops_for` of a model that computes in `compute`."""

    def ops_for(layer: nn.Module) -> LinearOps | None:
        if not isinstance(layer, GPTQLinear):
            return None
        return DequantizingOps(layer, lambda one: one.dequantized(torch.float32), compute)

    return ops_for
