"""Rows with a better and a worse answer, for objectives that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters.claims import (
    PREFERENCE_COLUMNS,
    QUESTION_COLUMNS,
    TURN_COLUMNS,
    preference_columns,
    turn_list,
    uses_from,
)
from smollm3_finetune.builtin.formatters.columns import CHAT_COLUMNS, conversation, with_system
from smollm3_finetune.builtin.formatters.question import question_turns
from smollm3_finetune.builtin.formatters.supervised_turns import supervised
from smollm3_finetune.builtin.formatters.turns import Turn, read_turns, text_turn
from smollm3_finetune.builtin.formatters.unread import refuse_media
from smollm3_finetune.builtin.options import PreferenceOptions
from smollm3_finetune.files.json import has_value, json_type

ANSWER_COLUMNS = tuple(column for pair in PREFERENCE_COLUMNS for column in pair)


class PreferenceFormatter:
    """`{"prompt": "…", "chosen": "…", "rejected": "…"}`

    The answers can also be in `chosen_messages` and `rejected_messages`, or `chosen_response` and `rejected_response`.
    Each is text, a message, or a list of messages (`role` and `content`, or `from` and `value`). An answer that begins
    with an assistant message continues the prompt. Any other answer is a whole conversation, which must begin with the
    prompt. The prompt may be called `instruction` or `question`; to one that is text, `input` and `history` are added
    as in `alpaca` rows. Without a prompt, it is the shared beginning of the two conversations; if the answers are
    single messages, it can also be in `conversations`. The supervised messages are those of the better conversation
    after the shared ones, so both conversations are split at the same message. Optional columns: `system` or
    `system_prompt`, `tools`, `chat_template_kwargs`, `label` (false: the row is left out) and `weight` (0, too).
    """

    def __init__(self, options: PreferenceOptions | NoOptions) -> None:
        self.options = options if isinstance(options, PreferenceOptions) else PreferenceOptions()
        own = {*ANSWER_COLUMNS, *QUESTION_COLUMNS, *TURN_COLUMNS, self.options.input, "history"}
        self.columns = CHAT_COLUMNS | own

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        refuse_media(row)
        columns = preference_columns(row) or PREFERENCE_COLUMNS[0]
        prompt, read = self._prompt(row, columns[0])
        better, worse = (with_system(_whole(row, column, prompt), row) for column in columns)
        names = f"{columns[0]!r} and {columns[1]!r}"
        shared = _count_shared(better, worse)
        if [t.message for t in better] == [t.message for t in worse]:
            raise ValueError(f"{names} are the same, so neither is better")
        if all(t.role == "system" for t in better[:shared]):
            raise ValueError(f"{names} do not begin with the same question, and 'prompt' has none")
        return conversation(
            row,
            better,
            rejected=worse,
            supervised=supervised(better, after=shared),
            columns=self.columns,
            not_here=self.columns - CHAT_COLUMNS - read - {*columns},
        )

    def _prompt(self, row: Mapping[str, Any], chosen: str) -> tuple[list[Turn], set[str]]:
        """The messages before the answers, and their columns; `chosen` is the column of the better answer."""
        named = [c for c in QUESTION_COLUMNS if row.get(c) is not None]
        if named:
            column = next((c for c in named if has_value(row[c])), named[0])
            value = row[column]
            if isinstance(value, list | tuple):
                return _turns(value, column), {column}
            return question_turns(row, column, self.options.input), {column, self.options.input, "history"}
        found = turn_list(row) if isinstance(row.get(chosen), Mapping) else None
        return ([], set()) if found is None else (_turns(found[1], found[0]), {found[0]})


def _whole(row: Mapping[str, Any], column: str, prompt: Sequence[Turn]) -> list[Turn]:
    """The conversation that ends with the answer in `column`."""
    answer = _answer(row.get(column), column, prompt)
    if answer[-1].role != "assistant":
        raise ValueError(f"{answer[-1].where}: the last message of {column!r} must be from the assistant")
    if not prompt or answer[0].role in ("assistant", "tool"):
        return [*prompt, *answer]
    asked = [t.message for t in prompt]
    if answer[0].role == "system" and prompt[0].role != "system":
        asked = [answer[0].message, *asked]
    if asked != [t.message for t in answer][: len(asked)]:
        raise ValueError(f"{column!r} is a whole conversation that does not begin with 'prompt'")
    return answer


def _answer(value: Any, column: str, prompt: Sequence[Turn]) -> list[Turn]:
    if isinstance(value, Mapping | list | tuple):
        return _turns([value] if isinstance(value, Mapping) else value, column)
    if not isinstance(value, str):
        raise ValueError(f"{column!r} must be text or a list of messages, found {json_type(value)}")
    if not prompt:
        raise ValueError(f"{column!r} is text, so the question must be in 'prompt', which is missing")
    return [text_turn("assistant", value, column)]  # may be empty: an empty answer can be the worse one


def _turns(value: Sequence[Any], column: str) -> list[Turn]:
    if uses_from(value, default=False):
        return read_turns(value, column, role="from", content="value")
    return read_turns(value, column)


def _count_shared(better: Sequence[Turn], worse: Sequence[Turn]) -> int:
    """The number of equal messages at the start; at least the last message of each is not counted."""
    most = min(len(better), len(worse)) - 1
    return next((i for i in range(most) if better[i].message != worse[i].message), most)
