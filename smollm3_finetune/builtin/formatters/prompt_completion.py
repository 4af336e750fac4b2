"""Rows with a prompt and its completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters.columns import CHAT_COLUMNS, conversation, with_system
from smollm3_finetune.builtin.formatters.content import required_column, required_text
from smollm3_finetune.builtin.formatters.question import question_turns
from smollm3_finetune.builtin.formatters.supervised_turns import supervised
from smollm3_finetune.builtin.formatters.turns import Turn, read_turns, text_turn
from smollm3_finetune.builtin.formatters.unread import refuse_media
from smollm3_finetune.builtin.options import PromptCompletionOptions

DEFAULT = PromptCompletionOptions().completion
OTHER_NAMES = "to name the columns: --set formatter.prompt=COLUMN --set formatter.completion=COLUMN"


class PromptCompletionFormatter:
    """`{"prompt": "…", "completion": "…"}`; the completion may be called `response`, and options name other columns.

    Each is text or a list of messages. Only the completion is supervised, not the answers inside the prompt. To a
    prompt that is text, `input` is appended after an empty line, and the pairs of `history` come before it, as in
    `alpaca` rows. Optional columns: `system` or `system_prompt`, `tools`, `chat_template_kwargs`, `label` or
    `desirable` (whether the completion is good), and `weight` (0: the row is left out).
    """

    def __init__(self, options: PromptCompletionOptions | NoOptions) -> None:
        self.options = options if isinstance(options, PromptCompletionOptions) else PromptCompletionOptions()
        completion = {self.options.completion, *(["response"] if self.options.completion == DEFAULT else [])}
        self.columns = CHAT_COLUMNS | completion | {self.options.prompt, self.options.input, "history"}

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        refuse_media(row)
        prompt_column, completion_column = self.options.prompt, self.options.completion
        if completion_column == DEFAULT:
            completion_column = _completion_column(row)
        value = row.get(prompt_column)
        if isinstance(value, list | tuple):
            asked, not_here = read_turns(value, prompt_column), [self.options.input, "history"]
        else:
            asked, not_here = question_turns(row, prompt_column, self.options.input, OTHER_NAMES), []
        prompt = with_system(asked, row)
        answer = required_column(row, completion_column, OTHER_NAMES)
        turns = prompt + text_or_turns(answer, completion_column, "assistant")
        return conversation(
            row,
            turns,
            supervised=supervised(turns, after=len(prompt)),
            columns=self.columns,
            not_here=not_here,
        )


def text_or_turns(value: Any, column: str, role: str) -> list[Turn]:
    """The text of a column as one message with `role`, or its messages. Raises ValueError for anything else."""
    if isinstance(value, list | tuple):
        return read_turns(value, column)
    return [text_turn(role, required_text(value, repr(column)), column)]


def _completion_column(row: Mapping[str, Any]) -> str:
    if row.get("completion") is None:
        return "response" if row.get("response") is not None else "completion"
    if row.get("response") not in (None, row["completion"]):
        raise ValueError("'completion' and 'response' are two different answers to the same prompt")
    return "completion"
