"""A linear layer that holds the codes of a checkpoint and dequantizes them in the forward and in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smollm3_finetune.api import FrozenTensor, frozen_linear

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of FP4; the highest bit of a code is the sign."""


class CompressedLinear(nn.Module):  # type: ignore[misc]
    """y = x Wᵀ + b with W[o, i] = scale[o, g] · (code[o, i] − zero[o, g]), g the group of input feature i."""

    codes = FrozenTensor()
    scale = FrozenTensor()
    zero = FrozenTensor()
    index = FrozenTensor()

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        *,
        kind: str,
        in_features: int,
        zero: Tensor | None = None,
        index: Tensor | None = None,
        bias: nn.Parameter | None = None,
    ) -> None:
        """`kind` says what the bytes `codes` (out, bytes) are: `int4` and `int8` are offset by half of their range,
        `signed` is int8, `fp8` is E4M3, `fp4` is E2M1. Parts of a byte begin with the low bits. `scale` and `zero` are
        (out, groups) or (1, groups); groups are of equal size, or `index` (in,) names the group of each feature.
        """
        super().__init__()
        self.kind, self.in_features, self.out_features, self.bias = kind, in_features, len(codes), bias
        self.codes, self.scale = codes.view(torch.uint8), scale.to(torch.float32)
        self.zero, self.index = zero, index
        self.groups = scale.shape[1]

    def _values(self) -> Tensor:
        """The codes as numbers (out, in), in a new float32 tensor."""
        if self.kind in ("signed", "fp8"):
            stored = torch.int8 if self.kind == "signed" else torch.float8_e4m3fn
            return self.codes.view(stored).to(torch.float32)
        if self.kind == "int8":
            return self.codes[:, : self.in_features].to(torch.float32).sub_(128)
        nibbles = torch.stack((self.codes & 15, self.codes >> 4), -1).flatten(1)[:, : self.in_features]
        if self.kind == "int4":
            return nibbles.to(torch.float32).sub_(8)
        values = torch.tensor([*E2M1, *(-value for value in E2M1)], device=nibbles.device)
        return values[nibbles.int()]

    def dense(self) -> Tensor:
        """The weight (out, in) as a new float32 tensor."""
        values = self._values()
        if self.index is not None:
            if self.zero is not None:
                values.sub_(self.zero[:, self.index])
            return values.mul_(self.scale[:, self.index])
        groups = values.view(len(values), self.groups, -1)
        if self.zero is not None:
            groups.sub_(self.zero[..., None])
        groups.mul_(self.scale[..., None])
        return values

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, out), in the dtype of `x`, or of autocast."""
        return frozen_linear(x, self.dense, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind}, groups={self.groups}"
