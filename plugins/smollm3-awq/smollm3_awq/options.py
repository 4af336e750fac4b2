"""The options of `awq`. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AWQOptions:
    """`awq` has no options: a checkpoint states everything."""
