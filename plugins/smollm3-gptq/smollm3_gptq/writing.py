"""Write a GPTQ checkpoint on given grids: no calibration, and no gptqmodel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3_finetune.api import (
    BuildContext,
    IncompatibleError,
    ModelError,
    ModelSource,
    architecture_of,
    linear_shapes,
    open_checkpoint,
    write_checkpoint,
)
from smollm3_gptq.checkpoint import DESCRIPTION, WORD
from smollm3_gptq.packing import pack_words
from smollm3_gptq.round_trip import on_grid

Grids = Mapping[str, Mapping[str, Tensor]]


def write_on_grids(source: ModelSource, out: Path, ctx: BuildContext, grids: Grids) -> None:
    """Write the checkpoint of a full-precision `source`, whose layers with a grid are rounded to it, into `out`.

    Raises IncompatibleError if the source has no layer of the name of a grid, ModelError if a layer has another shape.
    """
    stored = open_checkpoint(source)
    model = architecture_of(source)
    shapes = {} if model is None else linear_shapes(model)
    for layer, grid in grids.items():
        if f"{layer}.weight" not in stored or layer not in shapes:
            raise IncompatibleError(
                f"gptq cannot write {source.ref!r} on the grids of the run: it has no linear layer {layer}",
                hint="merge into the model that the run has trained",
            )
        shape = (grid["scales"].shape[1], len(grid["g_idx"]))
        if shape != shapes[layer]:
            raise ModelError(f"the grid of {layer} is for the shape {shape}, but {source.ref!r} has {shapes[layer]}")
    description = described_by(grids)
    less_one = description["checkpoint_format"] == "gptq"

    def tensors() -> Iterator[tuple[str, Tensor]]:
        with ctx.progress.task(f"rounding {Path(source.ref).name} to the grids of the run", len(grids)) as task:
            for name, tensor in stored.items():
                layer = name.removesuffix(".weight")
                if name == layer or layer not in grids:
                    yield name, tensor.to(ctx.torch_dtype) if tensor.is_floating_point() else tensor
                    continue
                for part, value in packed(tensor, grids[layer], less_one=less_one).items():
                    yield f"{layer}.{part}", value
                task.advance()

    out.mkdir(parents=True, exist_ok=True)
    about = {k: v for k, v in description.items() if k != "quant_method"}
    (out / DESCRIPTION).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    write_checkpoint(source, out, tensors(), ctx=ctx, quantization=description, dtype=ctx.dtype)


def packed(weight: Tensor, grid: Mapping[str, Tensor], *, less_one: bool) -> dict[str, Tensor]:
    """The tensors of a layer in a checkpoint, for its dense weight (out, in)."""
    bits = int(grid["bits"])
    on = {name: tensor.to(weight.device) for name, tensor in grid.items()}
    codes = on_grid(weight.to(torch.float32), on, dequantize=False).T.to(torch.uint8)
    zeros = on["zeros"].to(torch.uint8)
    stored = (zeros - 1) & ((1 << bits) - 1) if less_one else zeros
    return {
        "qweight": pack_words(codes, bits),
        "qzeros": pack_words(stored.T, bits).T.contiguous(),
        "scales": on["scales"],
        "g_idx": on["g_idx"].to(torch.int32),
    }


def described_by(grids: Grids) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint with these grids."""
    bits = {int(grid["bits"]) for grid in grids.values()}
    if len(bits) != 1:
        raise ModelError("the grids of the run have different numbers of bits" if bits else "the run has no grids")
    sizes = {
        int((grid["g_idx"] == 0).sum()) for grid in grids.values() if len(grid["scales"]) > 1
    }  # a layer with one group has at most as many features as a group
    if len(sizes) > 1:
        raise ModelError("the grids of the run have different group sizes")
    sym = all(bool((grid["zeros"] == 1 << (int(grid["bits"]) - 1)).all()) for grid in grids.values())
    layout = "gptq" if sym else "gptq_v2"
    return {
        "quant_method": "gptq",
        "bits": bits.pop(),
        "group_size": sizes.pop() if sizes else -1,
        "desc_act": any(bool((g["g_idx"][1:] < g["g_idx"][:-1]).any()) for g in grids.values()),
        "sym": sym,
        "lm_head": False,
        "checkpoint_format": layout,
        "format": layout,
        "pack_dtype": f"int{WORD}",
    }
