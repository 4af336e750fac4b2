"""The weights that the checkpoints of both quantizers dequantize to, computed fast enough for every step of training.

On a CPU, bitsandbytes quantizes to 4 bits with a binary search, at about 30 ns for each weight. Here a table of the
unit interval gives the code of a weight at about 5 ns, and the result is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from bitsandbytes import functional
from torch import Tensor
from transformers import PreTrainedModel

BLOCK = 64
"""Weights that share a scale, along the flattened matrix."""
NESTED_BLOCK = 256
"""Scales that share a scale, with double quantization."""
PIECE = 2048
"""Blocks that are quantized together: their intermediate values fit into the cache of a core."""
SMALLEST = 1e-38
"""The smallest scale that bitsandbytes divides by."""


@dataclass(frozen=True)
class BnbRoundTrip:
    """Quantizes and dequantizes as one of the quantizers. There is no grid: scales are found again from the weights."""

    covered: Callable[[PreTrainedModel], Collection[str]]
    values: Callable[[Tensor], Tensor]

    def layers(self, model: PreTrainedModel) -> Collection[str]:
        return self.covered(model)

    def grid(self, layer: str, weight: Tensor) -> Mapping[str, Tensor]:
        return {}

    def apply(self, layer: str, weight: Tensor, grid: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.values(weight.detach())


def four_bits(weight: Tensor, quant_type: str, double_quant: bool) -> Tensor:
    """The weight (out, in) as a 4-bit layer dequantizes it, as a new float32 tensor on the same device.

    Source: bitsandbytes 0.50 `functional.quantize_4bit` and `dequantize_4bit`.
    """
    if weight.device.type != "cpu" or weight.numel() % BLOCK:
        codes, state = functional.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, compress_statistics=double_quant, quant_type=quant_type
        )
    else:
        codes, scales = _codes(weight.contiguous().view(-1, BLOCK), _table(quant_type))
        state = functional.QuantState(
            absmax=_nested(scales) if double_quant else scales,
            shape=weight.shape,
            dtype=torch.float32,
            blocksize=BLOCK,
            quant_type=quant_type,
        )
    found: Tensor = functional.dequantize_4bit(codes, state)
    return found.reshape(weight.shape)


def _codes(blocks: Tensor, table: _Table) -> tuple[Tensor, Tensor]:
    """The packed codes (n · 32, 1) and the scales (n,) of `blocks` (n, 64)."""
    scales = torch.empty(len(blocks))
    packed = torch.empty(blocks.numel() // 2, 1, dtype=torch.uint8)
    for start in range(0, len(blocks), PIECE):
        piece = blocks[start : start + PIECE]
        largest = piece.abs().amax(1)
        scales[start : start + PIECE] = largest
        x = torch.mul(piece, 1.0 / largest.clamp(min=SMALLEST)[:, None]).clamp_(-1, 1).view(-1)
        pairs = table.codes(x).view(torch.int16)  # the first code of a pair is in the lower byte
        packed[start * BLOCK // 2 :][: len(pairs), 0] = (pairs << 4).bitwise_or_(pairs >> 8)
    return packed, scales


def _nested(scales: Tensor) -> Tensor:
    """The scales as double quantization keeps them: 8 bits each, after their mean is subtracted."""
    offset = scales.mean()
    codes, state = functional.quantize_blockwise(scales - offset, blocksize=NESTED_BLOCK)
    found: Tensor = functional.dequantize_blockwise(codes, state)
    return found.add_(offset)


@dataclass(frozen=True)
class _Table:
    """The codes of a 4-bit type by equal cells of [-1, 1], each with at most one boundary between two codes."""

    cells: int
    below: Tensor
    """The number of boundaries in the cells before each cell, float32."""
    boundary: Tensor
    """The boundary in each cell; infinite if there is none."""
    order: Tensor | None
    """The codes (16,) in ascending order of their values; None: they are in order."""

    def codes(self, x: Tensor) -> Tensor:
        """The code of each value of [-1, 1], as uint8. Changes `x`."""
        cell = _cell(x, self.cells)
        rank = x.gt_(self.boundary.index_select(0, cell)).add_(self.below.index_select(0, cell))
        if self.order is None:
            return rank.to(torch.uint8)
        return self.order.index_select(0, rank.to(torch.int32))


def _cell(x: Tensor, cells: int) -> Tensor:
    """The cell of each value of [-1, 1]. It never decreases if the value increases, however it is rounded."""
    return x.mul(cells / 2).add_(cells / 2).to(torch.int32)


@cache
def _table(quant_type: str) -> _Table:
    code = functional.get_4bit_type(quant_type, device="cpu")
    order = torch.argsort(code)
    boundaries = (code[order[:-1]] + code[order[1:]]) / 2
    cells = 64 if quant_type == "nf4" else 1024
    place = _cell(boundaries, cells)
    assert len(place.unique()) == len(place), "a cell of the table has two boundaries"
    below = torch.searchsorted(place, torch.arange(cells + 1, dtype=torch.int32))
    boundary = torch.full((cells + 1,), torch.inf)
    boundary[place.long()] = boundaries
    in_order = torch.equal(order, torch.arange(len(order)))
    return _Table(cells, below.to(torch.float32), boundary, None if in_order else order.to(torch.uint8))


def eight_bits(weight: Tensor) -> Tensor:
    """The weight (out, in) as an 8-bit layer dequantizes it, as a new float32 tensor on the same device.

    bitsandbytes casts the weight to float16 first. Source: bitsandbytes 0.50 `nn.Int8Params`, `int8_vectorwise_quant`.
    """
    if weight.device.type != "cpu":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16).contiguous())
        whole = codes.to(torch.float32)
    else:
        half = weight.to(torch.float16).to(torch.float32)
        scales = half.abs().amax(1)
        whole = half.mul_(127.0 / scales[:, None]).round_().nan_to_num_(0.0, 0.0, 0.0)
        whole.add_(0.0)  # an integer has no negative zero
    return whole.mul_(scales.to(torch.float32).unsqueeze(1).mul(1.0 / 127.0))
