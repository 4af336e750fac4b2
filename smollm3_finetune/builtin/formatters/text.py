"""Rows of raw text, trained on as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters.content import required_text
from smollm3_finetune.builtin.options import TextOptions


class TextFormatter:
    """`{"text": "…"}`; every token is supervised. No chat template is applied and nothing is trimmed."""

    def __init__(self, options: TextOptions | NoOptions) -> None:
        self.options = options if isinstance(options, TextOptions) else TextOptions()

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        column = self.options.column
        return Conversation(text=required_text(row.get(column), repr(column)))
