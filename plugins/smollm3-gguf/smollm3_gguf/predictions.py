"""Compares predictions of two models at the same positions: KL divergence, agreement, perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from smollm3_finetune.api import IGNORE_INDEX

SAME = 1e-6
"""Below this `Agreement.scale`, in nats, predictions are the same everywhere, and a share of it has no meaning."""
CHUNK = 32
"""Positions that are compared at once, in float64."""


@dataclass
class Agreement:
    """Sums over positions; `add` them row by row."""

    positions: int = 0
    divergence: float = 0.0
    unrelated: float = 0.0
    """KL divergence of the source's predictions elsewhere in the same row, half of its length away."""
    same: int = 0
    loss: float = 0.0
    source_loss: float = 0.0

    def add(self, row: Tensor, indices: Sequence[int], other: Tensor, targets: Tensor) -> None:
        """Add positions of one row: all logits (tokens, vocabulary) of the source, and for those at `indices` the
        other model's and the tokens that follow.

        Positions without a target count as places elsewhere, so that one target in a row is enough.
        """
        source, far = row[indices], row.roll(len(row) // 2, 0)[indices]
        for part in range(0, len(targets), CHUNK):
            rows = slice(part, part + CHUNK)
            p, q, r = (logits[rows].double().log_softmax(-1) for logits in (source, other, far))
            self.divergence += float((p.exp() * (p - q)).sum())
            self.unrelated += float((p.exp() * (p - r)).sum())
            self.same += int((p.argmax(-1) == q.argmax(-1)).sum())
            following = targets[rows, None]
            self.source_loss -= float(p.gather(-1, following).sum())
            self.loss -= float(q.gather(-1, following).sum())
        self.positions += len(targets)

    @property
    def kl(self) -> float:
        """Mean KL divergence of the other model from the source, in nats."""
        return self.divergence / self.positions

    @property
    def scale(self) -> float:
        """Mean KL divergence between predictions that have nothing to do with each other, in nats.

        It is 0 if the source predicts the same everywhere.
        """
        return self.unrelated / self.positions

    @property
    def comparable(self) -> bool:
        """Whether there are positions, and the source's predictions differ between positions."""
        return self.positions > 0 and not self.scale < SAME

    @property
    def top1(self) -> float:
        """Share of positions at which both models find the same token most probable."""
        return self.same / self.positions

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss / self.positions)

    @property
    def source_perplexity(self) -> float:
        return math.exp(self.source_loss / self.positions)


def predicted(row: Mapping[str, Sequence[int]], length: int) -> tuple[list[int], list[int], list[int]]:
    """The first `length` ids of a row, the indices at which the next token is predicted, and these tokens."""
    ids, labels = list(row["input_ids"])[:length], list(row["labels"])[:length]
    indices = [i - 1 for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX]
    return ids, indices, [ids[i + 1] for i in indices]


def difference(source: Tensor, other: Tensor) -> float:
    """Relative difference of two tensors of logits: the norm of the difference divided by the norm of `source`."""
    source, other = source.double(), other.double()
    return float((other - source).norm() / source.norm())
