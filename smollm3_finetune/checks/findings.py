"""Results of checks: one line each, passed or failed, with the fix if it failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finding:
    subject: str
    """The subject of the check: a plugin, or `adapter 'lora'`."""
    check: str
    """The statement that should be true, in a few words."""
    ok: bool
    found: str = ""
    """The problem, or a detail of a passed check."""
    fix: str = ""
    """How to fix the problem."""
    serious: bool = True
    """Whether a failure counts as an error; False for a warning."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def wrong(findings: Sequence[Finding]) -> list[Finding]:
    """The failed checks that count as errors."""
    return [f for f in findings if not f.ok and f.serious]
