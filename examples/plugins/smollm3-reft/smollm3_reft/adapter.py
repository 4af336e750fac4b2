"""The adapter: h + Rᵀ(W h + b - R h), for the hidden state h of each token after chosen blocks.

R (rank, d) has orthonormal rows: they span the subspace that is edited. Source: Wu et al., "ReFT: Representation
Finetuning for Language Models", 2024. There only chosen positions of the prompt are edited; here, every token is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smollm3_finetune.api import (
    AdaptedLayers,
    Base,
    BuildContext,
    ConfigError,
    IncompatibleError,
    transformer_blocks,
)
from smollm3_reft.options import ReftOptions


class Edit(nn.Module):  # type: ignore[misc]
    """Starts as the identity: W is R, and b is 0."""

    def __init__(self, rank: int, width: int, ctx: BuildContext) -> None:
        super().__init__()
        # torch has no QR decomposition in half precision, in which `generate` restores an adapter
        kind: Any = {"dtype": torch.promote_types(ctx.trained_dtype, torch.float32), "device": ctx.device}
        self.directions = nn.Parameter(torch.randn(width, rank, **kind))
        self.source = nn.Parameter(self.subspace().detach().clone())
        self.bias = nn.Parameter(torch.zeros(rank, **kind))

    def subspace(self) -> Tensor:
        """R (rank, d), from the QR decomposition of free parameters, which a step cannot make less orthonormal."""
        with torch.autocast(self.directions.device.type, enabled=False):
            return torch.linalg.qr(self.directions)[0].T

    def forward(self, h: Tensor) -> Tensor:
        """What is added to h (…, d)."""
        rows = self.subspace()
        change = nn.functional.linear(h.to(rows), self.source - rows, self.bias)  # (…, rank): W h + b - R h
        return (change.to(rows) @ rows).to(h)


class ReftAdapter:
    def __init__(self, options: ReftOptions) -> None:
        self.options = options

    def attach(self, base: Base, ctx: BuildContext, total_steps: int | None) -> AdaptedLayers:
        """Put fresh edits on `base`. Raises ConfigError for a block that it does not have, and for too high a rank."""
        blocks, width = list(transformer_blocks(base.model)), int(base.model.config.get_text_config().hidden_size)
        chosen = self.options.blocks or range(len(blocks))
        if wrong := [number for number in chosen if not 0 <= number < len(blocks)]:
            raise ConfigError(
                f"reft: the model has no block {wrong[0]}", hint=f"--adapter-opt blocks={len(blocks) - 1} is the last"
            )
        if self.options.rank > width:
            raise ConfigError(
                f"reft: rank={self.options.rank} is more than the {width} dimensions of the hidden states",
                hint="--adapter-opt rank=4",
            )
        adapted = AdaptedLayers(base)
        for number in dict.fromkeys(chosen):
            adapted.add(blocks[number], "reft", Edit(self.options.rank, width, ctx), edited)
        return adapted

    def restore(self, base: Base, path: Path, ctx: BuildContext, total_steps: int | None) -> AdaptedLayers:
        """Put saved edits on `base`. Raises ModelError if they belong to other blocks."""
        return self.attach(base, ctx, total_steps).restored(path, ctx)


def edited(edit: Edit, x: Tensor, y: Any) -> Any:
    """The output of a block; some models return a tuple that begins with the hidden states."""
    hidden = y[0] if isinstance(y, tuple) else y
    if hidden.shape[-1] != edit.source.shape[1]:
        raise IncompatibleError(f"reft: a block returns {hidden.shape[-1]} dimensions, not {edit.source.shape[1]}")
    changed = hidden + edit(hidden)
    return (changed, *y[1:]) if isinstance(y, tuple) else changed
