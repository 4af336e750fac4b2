"""A row as a run would train on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """One sequence of tokens that a row became."""

    name: str
    """`""` where there is one, else what the objective calls it: `chosen`, `rejected`."""
    ids: Sequence[int]
    supervised: Sequence[bool]
    """Whether the loss looks at each token. The first never counts: nothing comes before it."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A row as a run would train on it."""

    where: str
    side: str
    """`train`, `held out` or `left out`."""
    held_out: bool
    """The side it falls on, also where it was left out."""
    why: str
    """Why it was left out, else empty."""
    enough: int | None
    """The longest length, in tokens, with which a row that was left out would not have been."""
    copies: int
    """How often it is seen in one pass; 0 for a row that its source's weight skips."""
    sequences: tuple[TokenSequence, ...]
    length: int
    """Tokens before anything was cut; of its longest sequence, where there are several."""
    uncut: int
    """Tokens before anything was cut, of all its sequences."""
    notes: tuple[str, ...]
    """What was changed on the way: `cut`, `trace stripped`, …"""

    @property
    def tokens(self) -> int:
        return sum(len(s.ids) for s in self.sequences)

    @property
    def supervised(self) -> int:
        return sum(sum(s.supervised) for s in self.sequences)
