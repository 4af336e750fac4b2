"""The order of the examples in a pass: derived from seed and pass, without a list of all indices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

PIECE = 4096
"""Indices that are converted to Python integers at a time."""

WINDOW = 64
"""Batches that are sorted by length together."""


class Shuffled(Sampler[int]):  # type: ignore[misc]
    """A permutation of `0 … size - 1` for each pass.

    torch's `RandomSampler` converts the whole permutation to a list, about 48 bytes per row (torch 2.13). Here it stays
    a tensor of 4 bytes per row. The order depends only on the seed and the pass, so a resumed run repeats it.
    """

    def __init__(self, size: int, seed: int, fills: int = 0) -> None:
        self.size, self.seed, self.epoch = size, seed, 0
        self.fills = fills
        """The number of fillers, whose indices are at the end of each pass, in ascending order."""

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
        """Set the pass of the next iteration, counted from 0; called by the Trainer."""
        self.epoch = epoch


class LengthGrouped(Shuffled):
    """Like `Shuffled`, with rows of similar length in each batch: windows of shuffled rows are sorted by length.

    The batches of a window are shuffled again. In the first window the longest batch comes first, so that a batch
    that does not fit into memory fails immediately.
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
            short = len(batches) - 1 if len(window) % self.batch_size else None  # only the last batch may be short
            for place in sorted(places, key=lambda p: p == short):
                yield from batches[place].tolist()
