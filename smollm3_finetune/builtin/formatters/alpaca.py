"""Rows with instruction, input and output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters.columns import CHAT_COLUMNS, conversation, with_system
from smollm3_finetune.builtin.formatters.content import required_column, required_text
from smollm3_finetune.builtin.formatters.question import question_turns
from smollm3_finetune.builtin.formatters.supervised_turns import supervised
from smollm3_finetune.builtin.formatters.turns import text_turn
from smollm3_finetune.builtin.formatters.unread import refuse_media
from smollm3_finetune.builtin.options import AlpacaOptions


class AlpacaFormatter:
    """`{"instruction": "…", "input": "…", "output": "…"}`

    `input` is appended to the instruction after an empty line; the option `input` names another column for it. Optional
    columns, all of which may be empty: `input`, `system` or `system_prompt`, `history` (earlier pairs of question and
    answer), `tools`, `chat_template_kwargs`, `label` or `desirable` (whether the output is good), and `weight` (0: the
    row is left out).
    """

    def __init__(self, options: AlpacaOptions | NoOptions) -> None:
        self.options = options if isinstance(options, AlpacaOptions) else AlpacaOptions()
        self.columns = CHAT_COLUMNS | {"instruction", "output", "history", self.options.input}

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        refuse_media(row)
        turns = question_turns(row, "instruction", self.options.input)
        output = required_text(required_column(row, "output"), "'output'")
        turns = [*with_system(turns, row), text_turn("assistant", output, "output")]
        after = 0 if self.options.learn_history else len(turns) - 1
        return conversation(row, turns, supervised=supervised(turns, after=after), columns=self.columns)
