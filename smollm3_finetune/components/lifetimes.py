"""How long each hook and each version of the plugin API works; docs/api-versions.md shows both as tables.

To deprecate a hook or a version, set its `deprecated` and `instead`. `plugins check` then warns, and the hook works for
at least `NOTICE` longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

NOTICE = timedelta(days=365)
"""The shortest time between a deprecation and a removal."""


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    since: date
    """When it became part of the contract."""
    deprecated: date | None = None
    instead: str = ""
    """What to use instead, as an imperative."""

    @property
    def until(self) -> date | None:
        """The first day on which a release may remove it; None if it is not deprecated."""
        return None if self.deprecated is None else self.deprecated + NOTICE

    def warning(self) -> str:
        """A sentence without subject; empty if it is not deprecated."""
        return f"deprecated since {self.deprecated}, works until {self.until} at least" if self.deprecated else ""


HOOKS: Mapping[str, Lifetime] = {
    "smollm3_loaders": Lifetime(since=date(2026, 11, 22)),
    "smollm3_quantizers": Lifetime(since=date(2026, 11, 22)),
    "smollm3_adapters": Lifetime(since=date(2026, 11, 22)),
    "smollm3_formatters": Lifetime(since=date(2026, 11, 22)),
    "smollm3_objectives": Lifetime(since=date(2026, 11, 22)),
    "smollm3_evaluators": Lifetime(since=date(2026, 11, 29)),
    "smollm3_exporters": Lifetime(since=date(2026, 11, 30)),
    "smollm3_launchers": Lifetime(since=date(2026, 11, 30)),
    "smollm3_optimizers": Lifetime(since=date(2026, 11, 30)),
    "smollm3_trackers": Lifetime(since=date(2026, 11, 30)),
    "smollm3_commands": Lifetime(since=date(2026, 11, 30)),
}

API_VERSIONS: Mapping[int, Lifetime] = {
    1: Lifetime(since=date(2026, 11, 22), deprecated=date(2026, 11, 29), instead="write api=2"),
    2: Lifetime(since=date(2026, 11, 29)),
}
