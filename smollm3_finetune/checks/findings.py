"""What a check found: one line each, right or wrong, with what to do where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finding:
    subject: str
    """What was looked at: a plugin, or `adapter 'lora'`."""
    check: str
    """In a few words, what should hold."""
    ok: bool
    found: str = ""
    """What is wrong, or a detail worth knowing."""
    fix: str = ""
    """What to do where it is wrong."""
    serious: bool = True
    """Whether it counts; False for what is merely worth knowing."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def wrong(findings: Sequence[Finding]) -> list[Finding]:
    return [f for f in findings if not f.ok and f.serious]
