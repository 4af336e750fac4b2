"""The order of the examples of a pass: decided by seed and pass, without a list of all indices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

PIECE = 4096
"""Indices that are Python integers at a time."""


WINDOW = 64
"""Batches that are sorted by length together."""


class Shuffled(Sampler[int]):  # type: ignore[misc]
    """A permutation of `0 … size - 1` for each pass.

    torch's `RandomSampler` turns the whole permutation into a list, some 48 bytes a row (torch 2.13); here it stays a
    tensor of 4 bytes a row. The order depends on the seed and on the pass alone, so a resumed run finds it again.
    """

    def __init__(self, size: int, seed: int, fills: int = 0) -> None:
        self.size, self.seed, self.epoch = size, seed, 0
        self.fills = fills
        """How many more indices stand at the end of each pass, in their order."""

    def __len__(self) -> int:
        return self.size + self.fills

    def __iter__(self) -> Iterator[int]:
        yield from self._permutation()
        yield from range(self.size, self.size + self.fills)

    def _permutation(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        dtype = torch.int32 if self.size < 2**31 else torch.int64
        order = torch.randperm(self.size, generator=generator, dtype=dtype)
        for piece in order.split(PIECE):
            yield from piece.tolist()

    def set_epoch(self, epoch: int) -> None:
        """Which pass the next iteration is for, counted from 0; the Trainer tells it."""
        self.epoch = epoch


class LengthGrouped(Shuffled):
    """As `Shuffled`, with rows of about one length in each batch: windows of the shuffled rows are sorted by length.

    The batches of a window are shuffled again, the longest among them first in the first window, so that a batch
    that does not fit into memory fails at once.
    """

    def __init__(self, lengths: NDArray[np.int32], batch_size: int, seed: int, fills: int = 0) -> None:
        super().__init__(len(lengths), seed, fills)
        self.lengths, self.batch_size = torch.from_numpy(lengths), batch_size

    def _permutation(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.size, generator=generator, dtype=torch.int32)
        for number, window in enumerate(order.split(WINDOW * self.batch_size)):
            batches = window[self.lengths[window].argsort(descending=True, stable=True)].split(self.batch_size)
            places = torch.randperm(len(batches), generator=generator).tolist()
            if number == 0:
                places.sort(key=bool)
            short = len(batches) - 1 if len(window) % self.batch_size else None  # only the last of all may be
            for place in sorted(places, key=lambda p: p == short):
                yield from batches[place].tolist()
