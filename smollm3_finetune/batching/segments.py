"""The attention calls of a flat batch: which tokens are queries of a call, and which are its keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Span:
    """One call: the queries are tokens `start` to `end`; the keys are those of `before`, then the same tokens."""

    start: int
    end: int
    before: tuple[tuple[int, int], ...] = ()
    """Start and end of each earlier piece of the sequence that these tokens continue, in their order."""

    @property
    def queries(self) -> int:
        return self.end - self.start

    @property
    def keys(self) -> int:
        return self.queries + sum(end - start for start, end in self.before)

    def of(self, values: Tensor) -> Tensor:
        """The keys or values of the call. (1, H, T, D) becomes (1, H, keys, D)."""
        own = values[:, :, self.start : self.end]
        if not self.before:
            return own
        return torch.cat([*(values[:, :, start:end] for start, end in self.before), own], dim=2)


def calls(edges: Sequence[int], parents: Sequence[int] | None) -> list[Span]:
    """The calls for segments between `edges` (segments + 1), in the order of their tokens.

    `parents` (segments,) is the index of the segment that each segment continues, or -1. A prefix and the segment that
    follows it and continues it share a call. Without `parents`, each segment is a call.
    """
    pieces = list(pairwise(edges))
    if parents is None:
        return [Span(start, end) for start, end in pieces]
    found: list[Span] = []
    last = -1  # the last segment of the last call
    for i, (start, end) in enumerate(pieces):
        if start == end:
            continue
        ancestors = _ancestors(i, pieces, parents)
        if ancestors and ancestors[-1] == last:
            found[-1] = Span(found[-1].start, end, found[-1].before)
        else:
            found.append(Span(start, end, tuple(pieces[a] for a in ancestors)))
        last = i
    return found


def _ancestors(segment: int, pieces: Sequence[tuple[int, int]], parents: Sequence[int]) -> list[int]:
    """The segments, from the first, that a segment continues, without empty ones."""
    found: list[int] = []
    while (segment := parents[segment]) >= 0:
        if pieces[segment][0] < pieces[segment][1]:
            found.append(segment)
    return found[::-1]
