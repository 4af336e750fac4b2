"""Options that users set with `--set formatter.KEY=VALUE`. Imported for help and checks: keep it light."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class TicketsOptions:
    agents: tuple[str, ...] = option(("agent",), "Values of `from` that stand for the support team.")
    statuses: tuple[str, ...] = option((), "Train only on tickets with one of these statuses; none: on all.")
    redact: bool = option(True, "Replace e-mail addresses, and numbers of six digits or more, by [email] and [number].")
    system: str | None = option(None, "System message before every ticket.")
