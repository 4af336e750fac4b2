"""The order of the examples of a pass: shuffled by seed and pass, without a list of all indices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

PIECE = 4096
"""Indices that are Python integers at a time."""


class Shuffled(Sampler[int]):  # type: ignore[misc]
    """A permutation of `0 … size - 1` for each pass.

    torch's `RandomSampler` turns the whole permutation into a list, some 48 bytes a row (torch 2.13); here it stays a
    tensor of 4 bytes a row. The order depends on the seed and on the pass alone, so a resumed run finds it again.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        dtype = torch.int32 if self.size < 2**31 else torch.int64
        order = torch.randperm(self.size, generator=generator, dtype=dtype)
        for piece in order.split(PIECE):
            yield from piece.tolist()

    def set_epoch(self, epoch: int) -> None:
        """Which pass the next iteration is for, counted from 0; the Trainer tells it."""
        self.epoch = epoch
