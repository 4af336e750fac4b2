"""A row as a run would train on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smollm3_finetune.data.shares import Shares


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """One token sequence of a row."""

    name: str
    """`""` for a single sequence; `prompt`, `chosen` and `rejected` of a pair; else the objective's name for it, or
    `answer 1`, `chunk 1 of 3`, `example 1 of 2`."""
    ids: Sequence[int]
    supervised: Sequence[bool]
    """Whether each token is part of the loss. The first of a row never is, because nothing comes before it."""
    start: int = 0
    """Tokens of the prompt that it continues, which are a sequence of their own."""
    repeated: int = 0
    """Tokens of the example before it that the example repeats from the prompt."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A row as a run would train on it."""

    where: str
    side: str
    """`train`, `held out` or `left out`."""
    held_out: bool
    """Whether it is on the held-out side of the split, even if it was left out."""
    why: str
    """Why it was left out; empty if it was not."""
    enough: int | None
    """The maximum length, in tokens, with which a left-out row would be kept; None if length is not the reason."""
    by_objective: bool
    """Whether it has supervised tokens, but the objective left it out."""
    copies: int
    """How often it is used per pass; 0 for a row that the weight of its source skips."""
    chunks: int
    """The number of chunks of a long text; 0 for other rows."""
    undesirable: bool
    """Whether it was left out because its label is false."""
    missing: str
    """Why it was left out, if the objective needs a field that it does not have; else empty."""
    sequences: tuple[TokenSequence, ...]
    length: int
    """Tokens before truncation; of the longest sequence, if there are several: a prompt with its longest answer."""
    removed: int
    """Tokens that truncation removed from its sequences."""
    shares: Shares
    """Its answers and tool calls that are trained on or not."""
    notes: tuple[str, ...]
    """Changes made to it: `cut`, `trace stripped`, …"""

    @property
    def tokens(self) -> int:
        """Tokens of its examples."""
        return sum(len(s.ids) + s.repeated for s in self.sequences)

    @property
    def parts(self) -> dict[str, int]:
        """Tokens of the prompt and of each answer; empty if the row does not have several answers to a prompt."""
        return {s.name: len(s.ids) for s in self.sequences} if any(s.start for s in self.sequences) else {}

    @property
    def supervised(self) -> int:
        return sum(sum(s.supervised) for s in self.sequences)
