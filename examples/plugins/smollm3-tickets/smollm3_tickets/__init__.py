"""Formatter `tickets` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import FormatterSpec, hookimpl


def claims(row: Mapping[str, Any]) -> bool:
    """Whether this formatter reads a row, judging by its columns."""
    thread = row.get("thread")
    return "subject" in row and isinstance(thread, list) and all(isinstance(m, Mapping) for m in thread)


@hookimpl
def smollm3_formatters() -> list[FormatterSpec]:
    return [
        FormatterSpec(
            name="tickets",
            summary="support tickets: a subject and a thread of messages of a customer and of agents",
            factory="smollm3_tickets.formatter:TicketsFormatter",
            options="smollm3_tickets.options:TicketsOptions",
            api=2,
            claims=claims,
        )
    ]
