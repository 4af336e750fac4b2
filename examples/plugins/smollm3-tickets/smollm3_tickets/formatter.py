"""The formatter: turns a question and its answer into a conversation of two messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation

from smollm3_tickets.options import TicketsOptions


class TicketsFormatter:
    def __init__(self, options: TicketsOptions) -> None:
        self.options = options
        self.columns = (options.question, options.answer)  # the other columns are reported as not read

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        """Convert a row. Raises ValueError if a column has no text; smollm3 adds file and line to the message."""
        turns = [] if self.options.system is None else [{"role": "system", "content": self.options.system}]
        for role, column in (("user", self.options.question), ("assistant", self.options.answer)):
            text = row.get(column)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"the column {column!r} must hold text, got {text!r}")
            turns.append({"role": role, "content": text})
        return Conversation(messages=tuple(turns))
