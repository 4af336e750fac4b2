"""Round weights to the nearest code, and write the codes as compressed-tensors stores them.

Source: compressed-tensors 0.20 (`calculate_qparams`, `quantize`, `pack_to_int32`). Scales and codes are computed in
float32; the library computes in the dtype of the model, and bfloat16 then moves codes to a neighbor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smollm3_compressed_tensors.linear import CompressedLinear
from smollm3_compressed_tensors.scheme import FORMATS

FP8_MAX = 448.0


@dataclass(frozen=True)
class Rounded:
    """The codes of a weight, as numbers in float32: (out, groups, size), and (out, groups) scales and zero points."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def dense(self) -> Tensor:
        """The weight (out, in) that these codes stand for, in float32."""
        codes = self.codes if self.zero is None else self.codes - self.zero[..., None]
        return (codes * self.scale[..., None]).flatten(1)


@dataclass(frozen=True)
class Rounding:
    """How a scheme rounds weights."""

    scheme: str
    group_size: int | None
    """None: whole rows."""
    scale_dtype: torch.dtype
    """Scales are rounded to it before codes are found: the dtype of the checkpoint that holds them."""

    @property
    def bits(self) -> int | None:
        """Bits of an integer code; None: codes are 8-bit floats."""
        return FORMATS[self.scheme]

    def round(self, weight: Tensor) -> Rounded:
        """Round a weight (out, in) of any floating-point dtype, computing in float32."""
        out, inputs = weight.shape
        groups = weight.detach().to(torch.float32).reshape(out, -1, self.group_size or inputs)
        low, high = (-FP8_MAX, FP8_MAX) if self.bits is None else (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
        zero = None
        if self.scheme == "W4A16_ASYM":
            bottom, top = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
            scale = self._stored((top - bottom) / (high - low))
            zero = (low - bottom / scale).clamp(low, high).round()
        else:
            scale = self._stored(groups.abs().amax(-1) / ((high - low) / 2))
        codes = groups / scale[..., None]
        if zero is not None:
            codes += zero[..., None]
        codes.clamp_(low, high)  # an integer has no sign of zero, so + 0.0 below removes it
        codes = codes.to(torch.float8_e4m3fn).to(torch.float32) if self.bits is None else codes.round_() + 0.0
        return Rounded(codes, scale, zero)

    def _stored(self, scale: Tensor) -> Tensor:
        """Scales as a checkpoint stores them, in float32; none is 0."""
        tiny = torch.finfo(self.scale_dtype).eps
        scale = scale.to(self.scale_dtype).to(torch.float32)
        return torch.where(scale == 0, tiny, scale)

    def tensors(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors of a layer in a checkpoint."""
        rounded = self.round(weight)
        codes, scale = rounded.codes.flatten(1), rounded.scale.to(self.scale_dtype)
        if self.bits is None:
            return {"weight": codes.to(torch.float8_e4m3fn), "weight_scale": scale}
        found = {"weight_packed": packed(codes, self.bits), "weight_scale": scale}
        found["weight_shape"] = torch.tensor(weight.shape)
        if rounded.zero is not None:
            found["weight_zero_point"] = packed(rounded.zero.T, self.bits).T.contiguous()
        return found

    def layer(self, linear: torch.nn.Linear) -> CompressedLinear:
        """The quantized layer for a linear layer."""
        rounded, inputs = self.round(linear.weight), linear.in_features
        codes, kind = rounded.codes.flatten(1), "fp8" if self.bits is None else f"int{self.bits}"
        stored = codes.to(torch.float8_e4m3fn) if self.bits is None else packed(codes, self.bits)
        zero = None if rounded.zero is None else rounded.zero.to(torch.int8)
        return CompressedLinear(stored, rounded.scale, kind=kind, in_features=inputs, zero=zero, bias=linear.bias)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Signed codes (rows, n) of 4 or 8 bits as int32 words (rows, ⌈n · bits / 32⌉), low bits first."""
    each = 32 // bits
    plain = (codes + 2 ** (bits - 1)).to(torch.uint8, memory_format=torch.contiguous_format)
    plain = torch.nn.functional.pad(plain, (0, -plain.shape[1] % each))
    if bits != 8:
        plain = plain[:, ::2] | plain[:, 1::2] << 4
    return plain.contiguous().view(torch.int32)
