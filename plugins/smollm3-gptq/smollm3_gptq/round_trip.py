"""Rounding to the grid of a GPTQ checkpoint: the round trip of training, and the codes of `write`.

GPTQ finds scales and zero points of the base by calibration. Training keeps them, and rounds each weight to nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from smollm3_finetune.api import IncompatibleError, ModelError, linear_shapes
from smollm3_gptq.checkpoint import Checkpoint
from smollm3_gptq.packing import unpack_words

PIECE = 131072
"""Weights that are rounded together: their intermediate values fit into the cache of a core."""


@dataclass(frozen=True)
class GPTQRoundTrip:
    """The grid of a layer, of the checkpoint of the base: `scales` (groups, out) in the dtype of the file, `zeros`
    (groups, out) and `g_idx` (in,), the group of each input feature, as integers, and `bits`."""

    names: Callable[[], Collection[str]]
    checkpoint: Callable[[], Checkpoint]

    def layers(self, model: PreTrainedModel) -> Collection[str]:
        names = self.names()
        if unknown := sorted(set(names) - set(linear_shapes(model))):
            raise IncompatibleError(
                f"the model cannot be trained as gptq writes it: {unknown[0]!r} is a part of a layer or an expert",
                hint="leave --ship-as out",
            )
        return names

    def grid(self, layer: str, weight: Tensor) -> Mapping[str, Tensor]:
        return grid_of(self.checkpoint(), layer, weight.device)

    def apply(self, layer: str, weight: Tensor, grid: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return on_grid(weight.detach(), grid, dequantize=True)


def grid_of(checkpoint: Checkpoint, layer: str, device: torch.device) -> dict[str, Tensor]:
    """The grid of a layer of a checkpoint. Raises ModelError if its scales are not finite."""
    about = checkpoint.layers()[layer]
    stored = {part: checkpoint.stored.get(f"{layer}.{part}") for part in ("qweight", "scales", "qzeros", "g_idx")}
    parts = checkpoint.tensors({part: tensor for part, tensor in stored.items() if tensor is not None})
    if not bool(parts["scales"].isfinite().all()):
        raise ModelError(f"{checkpoint.directory}: the quantized layer {layer} contains scales that are not finite")
    zeros = unpack_words(parts["qzeros"].T.contiguous(), about.bits).T[:, : about.out_features]
    if checkpoint.zeros_less_one:
        zeros = (zeros + 1) & ((1 << about.bits) - 1)
    grid = {
        "scales": parts["scales"],
        "zeros": zeros.contiguous(),
        "g_idx": parts["g_idx"].to(torch.int32),
        "bits": torch.tensor(about.bits, dtype=torch.int32),
    }
    return {name: tensor.to(device) for name, tensor in grid.items()}


def on_grid(weight: Tensor, grid: Mapping[str, Tensor], *, dequantize: bool) -> Tensor:
    """The nearest codes (out, in) on a grid, as float32; or their values if `dequantize`.

    A value is scale · (code − zero), in float32, as `GPTQLinear` computes it.
    """
    rows, columns = weight.shape
    top = (1 << int(grid["bits"])) - 1
    groups = grid["g_idx"].long()
    scales, zeros = grid["scales"].T.to(torch.float32), grid["zeros"].T.to(torch.float32)  # (out, groups)
    order = torch.argsort(groups, stable=True) if bool((groups[1:] < groups[:-1]).any()) else None
    w = weight.contiguous() if order is None else weight[:, order]
    sizes = torch.bincount(groups, minlength=scales.shape[1])
    if bool((sizes == sizes[0]).all()):
        size = int(sizes[0])
    else:  # the last group is not full, or groups differ in size
        size, by_feature = 1, groups.sort().values
        scales, zeros = scales[:, by_feature], zeros[:, by_feature]
    scales, zeros = scales.contiguous()[..., None], zeros.contiguous()[..., None]
    inverse = torch.where(scales == 0, 0.0, 1.0 / scales)
    blocks = w.view(rows, -1, size)
    out = torch.empty_like(blocks)
    step = max(1, PIECE // columns)
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        codes = torch.mul(blocks[piece], inverse[piece], out=out[piece])
        codes.add_(zeros[piece]).round_().clamp_(0, top).add_(0.0)  # an integer has no negative zero
        if dequantize:
            codes.sub_(zeros[piece]).mul_(scales[piece])
    found = out.view(rows, columns)
    if order is None:
        return found
    return found[:, torch.argsort(order)]
