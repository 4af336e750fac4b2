"""Rows of messages with role and content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters.claims import TURN_COLUMNS, turn_list
from smollm3_finetune.builtin.formatters.columns import CHAT_COLUMNS, conversation, with_system
from smollm3_finetune.builtin.formatters.supervised_turns import supervised
from smollm3_finetune.builtin.formatters.turns import read_turns
from smollm3_finetune.builtin.formatters.unread import refuse_media
from smollm3_finetune.builtin.options import TurnsOptions


class MessagesFormatter:
    """`{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`

    The column may also be called `conversation` or `conversations`, and be JSON text, as in a CSV file; content may be
    typed text parts. A message may have `tool_calls`, `tool_call_id`, `name`, `reasoning_content`, and a weight:
    `loss_weight` or `weight` is 0 or 1, `train`, `training` or `loss` is true or false. 0 masks an assistant turn; 1
    has no effect on other turns (but see `learn_user`).
    Optional columns: `system` or `system_prompt`, `tools` (a list of schemas, or that as JSON text),
    `chat_template_kwargs` (such as `{"enable_thinking": false}`), `label` or `desirable` (whether the answer is good),
    and `weight` (0: the row is left out).
    """

    role = "role"
    content = "content"
    columns = CHAT_COLUMNS | {*TURN_COLUMNS}

    def __init__(self, options: TurnsOptions | NoOptions) -> None:
        self.options = options if isinstance(options, TurnsOptions) else TurnsOptions()

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        refuse_media(row)
        column, value = turn_list(row) or (self.default_column, row.get(self.default_column))
        turns = with_system(read_turns(value, column, role=self.role, content=self.content), row)
        return conversation(
            row,
            turns,
            supervised=supervised(turns, learn_user=self.options.learn_user),
            columns=self.columns,
            not_here=[c for c in TURN_COLUMNS if c != column],
        )

    default_column = "messages"
    """The column that the error message names if a row has no turns."""
