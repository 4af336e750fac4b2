"""The question of a row in columns of text: an instruction or prompt, its input, and the turns before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.builtin.formatters.content import optional_text, required_column, required_text
from smollm3_finetune.builtin.formatters.turns import Turn, text_turn
from smollm3_finetune.files.json import json_type


def question_turns(row: Mapping[str, Any], column: str, extra: str, hint: str | None = None) -> list[Turn]:
    """The turns of `history`, then the text of `column`, with that of the column `extra` after an empty line.

    Raises ValueError, with `hint` if the row has no such column.
    """
    question = required_text(required_column(row, column, hint), repr(column))
    more = optional_text(row.get(extra), repr(extra)) if extra != column else None
    text = question if more is None else f"{question}\n\n{more}"
    return [*_history(row.get("history")), text_turn("user", text, column)]


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
