"""Options that users set with `--set formatter.KEY=VALUE`. Imported for help and checks: keep it light."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class TicketsOptions:
    question: str = option("question", "Column with the user's message.")
    answer: str = option("answer", "Column with the assistant's answer, which is supervised.")
    system: str | None = option(None, "System message before every question.")
