"""Rows with instruction, input and output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters.columns import desirable, refuse_media, template_kwargs, tools, with_system
from smollm3_finetune.builtin.formatters.content import optional_text, required_text
from smollm3_finetune.builtin.formatters.supervised_turns import supervised
from smollm3_finetune.builtin.formatters.turns import Turn, text_turn
from smollm3_finetune.builtin.options import AlpacaOptions
from smollm3_finetune.files.json import json_type


class AlpacaFormatter:
    """`{"instruction": "…", "input": "…", "output": "…"}`

    `input` is appended to the instruction after an empty line. Optional columns, all of which may be empty: `input`,
    `system`, `history` (earlier pairs of question and answer), `tools`, `chat_template_kwargs`, and `label` or
    `desirable` (whether the output is good).
    """

    def __init__(self, options: AlpacaOptions | NoOptions) -> None:
        self.options = options if isinstance(options, AlpacaOptions) else AlpacaOptions()

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        refuse_media(row)
        instruction = required_text(row.get("instruction"), "'instruction'")
        output = required_text(row.get("output"), "'output'")
        extra = optional_text(row.get("input"), "'input'")
        question = instruction if extra is None else f"{instruction}\n\n{extra}"
        turns = with_system(_history(row.get("history")), row)
        before = len(turns)
        turns += [text_turn("user", question, "instruction"), text_turn("assistant", output, "output")]
        return Conversation(
            messages=tuple(t.message for t in turns),
            tools=tools(row),
            template_kwargs=template_kwargs(row),
            supervised=supervised(turns, after=0 if self.options.learn_history else before),
            desirable=desirable(row),
        )


def _history(history: Any) -> list[Turn]:
    """The turns of `[["question", "answer"], …]`."""
    if history is None or history == "":
        return []
    if not isinstance(history, list | tuple):
        raise ValueError(f"'history' must be a list of pairs, found {json_type(history)}")
    turns = []
    for i, pair in enumerate(history):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"history[{i}] must be a pair of texts, question and answer, found {pair!r:.80}")
        turns += [text_turn("user", pair[0], f"history[{i}][0]"), text_turn("assistant", pair[1], f"history[{i}][1]")]
    return turns
