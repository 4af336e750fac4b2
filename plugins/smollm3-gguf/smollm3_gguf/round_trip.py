"""What GGUF types do to weights, in torch: quantize, then dequantize, fast enough for every step of training.

Equal bit for bit to `gguf.quants`, which is written in NumPy and some ten times slower. Blocks of 32 weights run along
the inputs of a layer. A file stores the query and key projections with their rows in another order, which does not
change a block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BLOCK = 32
"""Weights of a block."""
PIECE = 4096
"""Blocks that are quantized together: their intermediate values fit into the cache of a core."""


@dataclass(frozen=True)
class GgufRoundTrip:
    """Rounds as a GGUF file does. There is no grid: scales are found again from the weights."""

    type_of: Callable[[str, tuple[int, int]], str]
    """Returns the type of a tensor, given the name of its module in transformers' model, and its shape (out, in)."""

    def layers(self, model: PreTrainedModel) -> Collection[str]:
        """Every linear layer, the embeddings and the head, except for those that the file stores in float32."""
        return [name for name, module in model.named_modules() if self._is_rounded(name, module)]

    def _is_rounded(self, name: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear | nn.Embedding):
            return False
        rows, columns = module.weight.shape
        return self.type_of(name, (rows, columns)) != "f32"

    def grid(self, layer: str, weight: Tensor) -> Mapping[str, Tensor]:
        return {}

    def apply(self, layer: str, weight: Tensor, grid: Mapping[str, Tensor]) -> Tensor:
        rows, columns = weight.shape
        with torch.no_grad():
            return rounded(weight.detach(), self.type_of(layer, (rows, columns)))


def rounded(weight: Tensor, kind: str) -> Tensor:
    """The float32 values (out, in) of a tensor of the type `kind`, such as `q4_0`, as a new tensor.

    Raises ValueError for another type, or if blocks do not divide a row.
    """
    if kind == "f32":
        return weight.clone()
    if kind in FLOATS:
        return weight.to(FLOATS[kind]).to(torch.float32)
    if kind not in BLOCKS:
        raise ValueError(f"no round trip is known for the GGUF type {kind!r}")
    if weight.shape[-1] % BLOCK:
        raise ValueError(f"a row of {weight.shape[-1]} weights cannot be divided into blocks of {BLOCK}")
    blocks = weight.contiguous().view(-1, BLOCK)
    out = torch.empty_like(blocks)
    for start in range(0, len(blocks), PIECE):
        BLOCKS[kind](blocks[start : start + PIECE], out[start : start + PIECE])
    return out.view(weight.shape)


def _from_zero(top: int) -> Callable[[Tensor, Tensor], None]:
    """Codes of 0 to 2 · top - 1 around `top`; the scale takes the weight of the largest magnitude to code 0."""

    def write(blocks: Tensor, out: Tensor) -> None:
        scale = _largest(blocks).div_(-top)
        codes = torch.mul(blocks, _inverse(scale), out=out).add_(top + 0.5)
        _finite(codes, scale).trunc_().clamp_(max=2 * top - 1).sub_(top).mul_(_half(scale))

    return write


def _from_least(most: int) -> Callable[[Tensor, Tensor], None]:
    """Codes of 0 to `most`, from the least weight of a block to the greatest."""

    def write(blocks: Tensor, out: Tensor) -> None:
        least = blocks.amin(1, keepdim=True)
        scale = blocks.amax(1, keepdim=True).sub_(least).div_(most)
        codes = torch.sub(blocks, least, out=out).mul_(_inverse(scale)).add_(0.5)
        _finite(codes, scale).trunc_().clamp_(max=most).mul_(_half(scale)).add_(_half(least))

    return write


def _eight_bits(blocks: Tensor, out: Tensor) -> None:
    """Codes of -127 to 127; halves are rounded away from zero."""
    scale = blocks.abs().amax(1, keepdim=True).div_(127)
    exact = _finite(blocks * _inverse(scale), scale)
    codes = torch.trunc(exact, out=out)
    halves = exact.sub_(codes).mul_(2).trunc_()
    codes.add_(halves).add_(0.0).mul_(_half(scale))  # adding zero: an integer has no negative zero


def _largest(blocks: Tensor) -> Tensor:
    """The first weight of the largest magnitude in each block (n, 1), with its sign."""
    most, least = blocks.amax(1, keepdim=True), blocks.amin(1, keepdim=True)
    found = torch.where(most > -least, most, least)
    ties = (most == -least).view(-1).nonzero().view(-1)
    if len(ties):
        tied = blocks[ties]
        found[ties] = tied.gather(1, tied.abs().argmax(1, keepdim=True))
    return found


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _finite(codes: Tensor, scale: Tensor) -> Tensor:
    """`codes` with 0 for values that are not finite: of blocks of which even the inverse scale is infinite."""
    if float(torch.where(scale == 0, torch.inf, scale.abs()).min()) < torch.finfo(torch.float32).smallest_normal:
        codes.nan_to_num_(0.0, 0.0, 0.0)
    return codes


def _half(scale: Tensor) -> Tensor:
    """A file stores scales in float16."""
    return scale.to(torch.float16).to(torch.float32)


FLOATS = {"f16": torch.float16, "bf16": torch.bfloat16}
BLOCKS = {
    "q4_0": _from_zero(8),
    "q4_1": _from_least(15),
    "q5_0": _from_zero(16),
    "q5_1": _from_least(31),
    "q8_0": _eight_bits,
}
"""Type to the function that writes the values of blocks (n, 32) into a tensor of their shape."""
