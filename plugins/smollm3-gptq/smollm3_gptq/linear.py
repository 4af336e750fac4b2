"""A linear layer that holds its weight as GPTQ codes and dequantizes it in the forward pass and in the backward pass.

gptqmodel's own kernels are not used here. Its CPU kernel repacks itself at the first evaluation and permanently loses
its gradient. With its PyTorch kernel, autograd keeps every dequantized weight until the backward pass, which takes as
much memory as the dense model. Here the backward pass dequantizes again, so nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smollm3_finetune.api import FrozenTensor, LinearOps, frozen_linear, ops_for_layers
from smollm3_gptq.memory import HELD_BITS
from smollm3_gptq.packing import pack_bytes, unpack_bytes, unpack_words


class GPTQLinear(nn.Module):  # type: ignore[misc]
    """y = x Wᵀ + b with W[o, i] = scale[o, g] · (code[o, i] − zero[o, g]), g the group of input feature i.

    Source: Frantar et al., GPTQ, arXiv:2210.17323; the layout of checkpoints is AutoGPTQ's.
    """

    codes = FrozenTensor()
    scales = FrozenTensor()
    zeros = FrozenTensor()
    order = FrozenTensor()
    place = FrozenTensor()

    def __init__(self, in_features: int, out_features: int, bits: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self.parts: tuple[str, ...] = ()
        """The layers of the checkpoint whose outputs make up this layer's: more than one if the layer is fused."""
        self.bias: nn.Parameter | None = None

    def fill(self, qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor, *, zeros_less_one: bool) -> None:
        """Take the tensors of a checkpoint, all on the device of the layer.

        qweight (in · bits / 32, out) and qzeros (groups, out · bits / 32) are int32 words, scales (groups, out) are
        floating point, g_idx (in,) is the group of each input feature. Checkpoints of format v1 store each zero point
        minus one. The layer stores the input features sorted by group, so that a group is a block of columns.
        """
        codes = unpack_words(qweight, self.bits).T  # (out, in)
        zeros = unpack_words(qzeros.T.contiguous(), self.bits).T[:, : self.out_features]  # (groups, out)
        if zeros_less_one:
            zeros = (zeros + 1) & ((1 << self.bits) - 1)
        groups = g_idx.long()
        if bool((groups[1:] < groups[:-1]).any()):
            order = torch.argsort(groups, stable=True)
            self.order, self.place = order, torch.argsort(order)
            codes, groups = codes[:, order], groups[order]
        counts = torch.bincount(groups, minlength=len(scales))
        self.group_size = int(counts.max())
        if bool((counts != self.group_size).any()):  # the last group is not full, or groups differ in size
            self.group_size = 1
            scales, zeros = scales[groups], zeros[groups]
        self.codes = pack_bytes(codes.contiguous(), HELD_BITS[self.bits])
        self.scales = scales.T.to(torch.float32).contiguous()  # (out, groups)
        self.zeros = zeros.T.contiguous()

    def sorted_weight(self) -> Tensor:
        """The weight (out, in), its columns sorted by group, as a new float32 tensor.

        The product of a float16 scale and a difference of codes is exact in float32.
        """
        codes = unpack_bytes(self.codes, HELD_BITS[self.bits], self.in_features)
        weight = codes.to(torch.float32).view(self.out_features, -1, self.group_size)
        weight.sub_(self.zeros[..., None]).mul_(self.scales[..., None])
        return weight.view(self.out_features, self.in_features)

    def dequantized(self) -> Tensor:
        """The weight (out, in) as a new float32 tensor, in the order of the input features."""
        weight = self.sorted_weight()
        return weight if self.place is None else weight[:, self.place]

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, out), in the dtype of `x`, or of autocast."""
        if self.order is not None:
            x = x[..., self.order]
        return frozen_linear(x, self.sorted_weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"


def ops_in(compute: torch.dtype) -> Callable[[nn.Module], LinearOps | None]:
    """`Base.ops_for` of a model that computes in `compute`."""
    return ops_for_layers(GPTQLinear, GPTQLinear.dequantized, compute)
