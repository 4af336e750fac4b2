"""A linear layer that holds AWQ codes and dequantizes them in the forward pass and in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smollm3_finetune.api import FrozenTensor, frozen_linear

NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where the eight neighboring columns of a 32-bit word are: column 1 is in the fifth group of four bits."""


class AWQLinear(nn.Module):  # type: ignore[misc]
    """y = x Wᵀ + b with W[o, i] = scale[o, g] · (code[o, i] − zero[o, g]), g the group of input feature i.

    Source: Lin et al., AWQ, arXiv:2306.00978; the layout is that of AutoAWQ's class `WQLinear_GEMM`.
    """

    codes = FrozenTensor()
    zeros = FrozenTensor()
    scales = FrozenTensor()

    def __init__(self, qweight: Tensor, qzeros: Tensor, scales: Tensor, bias: nn.Parameter | None) -> None:
        """`qweight` (in, out / 8) and `qzeros` (groups, out / 8) are int32 words, `scales` (groups, out) are floats.

        In memory, two codes of neighboring input features share a byte.
        """
        super().__init__()
        codes = unpacked(qweight).T.contiguous()  # (out, in)
        self.out_features, self.in_features = codes.shape
        self.bias = bias
        self.codes = codes[:, ::2] | codes[:, 1::2] << 4
        self.zeros = unpacked(qzeros).T  # (out, groups)
        self.scales = scales.T.to(torch.float32)
        self.groups = len(scales)

    def dense(self) -> Tensor:
        """The weight (out, in) as a new float32 tensor; the product of a float16 scale and an integer is exact."""
        codes = torch.stack((self.codes & 15, self.codes >> 4), -1).to(torch.float32)
        groups = codes.view(self.out_features, self.groups, -1)
        groups.sub_(self.zeros[..., None]).mul_(self.scales[..., None])
        return groups.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, out), in the dtype of `x`, or of autocast."""
        return frozen_linear(x, self.dense, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, groups={self.groups}"


def unpacked(words: Tensor) -> Tensor:
    """Codes (n, m · 8) as uint8 from int32 words (n, m)."""
    shifts = torch.tensor(NIBBLES, dtype=torch.int32) * 4
    codes = (words[:, :, None] >> shifts) & 15
    return codes.to(torch.uint8).flatten(1)
