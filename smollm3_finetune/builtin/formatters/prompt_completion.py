"""Rows with a prompt and its completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters.columns import desirable, refuse_media, template_kwargs, tools, with_system
from smollm3_finetune.builtin.formatters.content import required_text
from smollm3_finetune.builtin.formatters.supervised_turns import supervised
from smollm3_finetune.builtin.formatters.turns import Turn, read_turns, text_turn
from smollm3_finetune.builtin.options import PromptCompletionOptions

DEFAULT = PromptCompletionOptions().completion


class PromptCompletionFormatter:
    """`{"prompt": "…", "completion": "…"}`; the completion may be called `response`, and options name other columns.

    Each is text or a list of messages. Only the completion is supervised, not the answers inside the prompt. Optional
    columns: `system`, `tools`, `chat_template_kwargs`, and `label` or `desirable` (whether the completion is good).
    """

    def __init__(self, options: PromptCompletionOptions | NoOptions) -> None:
        self.options = options if isinstance(options, PromptCompletionOptions) else PromptCompletionOptions()

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        refuse_media(row)
        prompt_column, completion_column = self.options.prompt, self.options.completion
        if completion_column == DEFAULT:
            completion_column = _completion_column(row)
        prompt = with_system(text_or_turns(row.get(prompt_column), prompt_column, "user"), row)
        turns = prompt + text_or_turns(row.get(completion_column), completion_column, "assistant")
        return Conversation(
            messages=tuple(t.message for t in turns),
            tools=tools(row),
            template_kwargs=template_kwargs(row),
            supervised=supervised(turns, after=len(prompt)),
            desirable=desirable(row),
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
