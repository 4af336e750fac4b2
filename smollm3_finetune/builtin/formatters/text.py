"""Rows of raw text, trained on as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters.columns import LABELS, WEIGHTS, desirable, row_weight
from smollm3_finetune.builtin.formatters.content import required_column, required_text
from smollm3_finetune.builtin.formatters.unread import UnreadValue, ignoring
from smollm3_finetune.builtin.options import TextOptions

OTHER_NAME = "to name the column: --set formatter.column=COLUMN"
LABELS_OF_TEXT = LABELS[1:]
"""Without `label`, which is the number of a class in rows of text."""


class TextFormatter:
    """`{"text": "…"}`; every token is supervised. No chat template is applied and nothing is trimmed.

    Optional columns: `desirable` or `kto_tag` (whether the text is good). Any `label` is the class of a text and is not
    read.
    """

    def __init__(self, options: TextOptions | NoOptions) -> None:
        self.options = options if isinstance(options, TextOptions) else TextOptions()
        self.columns = {self.options.column, *LABELS_OF_TEXT, *WEIGHTS}

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        column = self.options.column
        if row_weight(row) == 0:
            zero = next(c for c in WEIGHTS if row.get(c) is not None)
            raise UnreadValue(f"{zero!r}: text cannot be masked, found {row[zero]!r}", hint=ignoring(zero))
        labels = {c: row[c] for c in LABELS_OF_TEXT if c in row}
        text = required_text(required_column(row, column, OTHER_NAME), repr(column))
        return Conversation(text=text, desirable=desirable(labels))
