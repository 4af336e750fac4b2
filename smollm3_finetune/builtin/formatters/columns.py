"""The columns that all chat formats read: system prompt, tools, chat_template_kwargs, labels and weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from smollm3_finetune.api import Conversation
from smollm3_finetune.builtin.formatters.content import optional_text
from smollm3_finetune.builtin.formatters.tools import parse_json, schemas
from smollm3_finetune.builtin.formatters.turns import Turn, text_turn
from smollm3_finetune.builtin.formatters.unread import UnreadValue, ignoring, refuse_lost_text
from smollm3_finetune.files.json import has_value, json_type

SYSTEM = ("system", "system_prompt", "system_message")
"""The columns that can hold the system prompt."""
LABELS = ("label", "desirable", "kto_tag")
"""The columns that can say whether the answer of a row is good."""
WEIGHTS = ("weight", "loss_weight", "train", "training")
"""The columns that can say whether a row is trained on: the first two are numbers, the others true or false."""
ANY_SYSTEM, ANY_LABEL, ANY_WEIGHT = frozenset(SYSTEM), frozenset(LABELS), frozenset(WEIGHTS)
CHAT_COLUMNS = frozenset({*SYSTEM, *LABELS, *WEIGHTS, "tools", "functions", "chat_template_kwargs"})
"""The columns that all chat formats read."""
RENDERER_ARGUMENTS = frozenset(
    {"messages", "conversation", "documents", "tokenize", "add_generation_prompt", "continue_final_message",
     "chat_template", "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding", "truncation",
     "max_length", "tokenizer_kwargs"}
)  # fmt: skip
"""Arguments of apply_chat_template that the renderer sets and a row cannot change."""


def conversation(
    row: Mapping[str, Any],
    turns: Sequence[Turn],
    *,
    supervised: tuple[int, ...] | None,
    rejected: Sequence[Turn] | None = None,
    columns: Collection[str],
    not_here: Iterable[str] = (),
    unread: Iterable[str] = (),
    lacks: Mapping[str, str] | None = None,
) -> Conversation:
    """The conversation of a row, with the columns that all chat formats read.

    `columns` are those that the formatter states as read, `not_here` those of them that it did not read in this row,
    `unread` other values that it did not read. `lacks` says why `rejected` is None.
    Raises ValueError if the text of another column would be lost (`refuse_lost_text`).
    """
    not_read = [c for c in not_here if has_value(row.get(c))]
    both = [*turns, *rejected] if rejected is not None else turns
    refuse_lost_text(row, both, {*columns} - {*not_read} if not_read else columns)
    not_read += unread
    label, weight = desirable(row), row_weight(row)
    if label is None and not ANY_LABEL.isdisjoint(row):
        not_read += [c for c in LABELS if has_value(row.get(c))]
    for turn in both:
        not_read += turn.unread
    return Conversation(
        messages=tuple(t.message for t in turns),
        rejected=None if rejected is None else tuple(t.message for t in rejected),
        tools=tools(row),
        template_kwargs=template_kwargs(row),
        supervised=() if weight == 0 else supervised,
        desirable=label,
        unread=tuple(dict.fromkeys(not_read)),
        lacks=lacks or {},
    )


def with_system(turns: Sequence[Turn], row: Mapping[str, Any]) -> list[Turn]:
    """The turns after the prompt of a `system` column, if there is one.

    Raises ValueError if the turns begin with a different system prompt, or if two columns have different ones.
    """
    if ANY_SYSTEM.isdisjoint(row):
        return list(turns)
    found = {c: text for c in SYSTEM if (text := optional_text(row.get(c), repr(c))) is not None}
    if not found:
        return list(turns)
    column, system = next(iter(found.items()))
    if other := next((c for c, text in found.items() if text != system), None):
        raise ValueError(f"{column!r} and {other!r} are two different system prompts")
    if turns and turns[0].role == "system":
        if turns[0].message["content"] != system:
            raise ValueError(f"{column!r} and {turns[0].where} are two different system prompts")
        return list(turns)
    return [text_turn("system", system, column), *turns]


def tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The `tools` column, or `functions`, its former name in OpenAI's API."""
    found_tools = schemas(row.get("tools"), "tools")
    if found_tools:
        return found_tools
    return tuple({"type": "function", "function": f} for f in schemas(row.get("functions"), "functions"))


def template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """The `chat_template_kwargs` column without nulls and empty values, which tables fill in.

    Raises ValueError for values that a template would misread: the text 'false' is true, and a list of tools as text
    is a list of letters.
    """
    column = "chat_template_kwargs"
    value = row.get(column)
    if isinstance(value, str):
        value = parse_json(value, column) if value.strip() else None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{column} must be an object, found {json_type(value)}")
    kwargs = {str(k): v for k, v in value.items() if v is not None and v != [] and v != {}}
    reserved = sorted(RENDERER_ARGUMENTS & set(kwargs))
    if reserved:
        raise ValueError(f"{column}.{reserved[0]} cannot be set by a row")
    expected: dict[str, tuple[Any, str]] = {
        "enable_thinking": (bool, "true or false"),
        "custom_instructions": (str, "text"),
        "python_tools": (list | tuple, "a list"),
        "xml_tools": (list | tuple, "a list"),
    }
    for key, (kind, words) in expected.items():
        if key in kwargs and not isinstance(kwargs[key], kind):
            raise ValueError(f"{column}.{key} must be {words}, found {kwargs[key]!r}")
    return kwargs


def desirable(row: Mapping[str, Any]) -> bool | None:
    """Whether the row labels its answer as good: true, false, 1, 0, one of them as text, or a word of `LABEL_WORDS`.

    None if it has no label; other values, such as the name of a class, are not labels of this kind. Raises ValueError
    if two columns disagree.
    """
    if ANY_LABEL.isdisjoint(row):
        return None
    found = {column: label for column in LABELS if (label := _label(row.get(column))) is not None}
    if len(set(found.values())) > 1:
        raise ValueError(f"{' and '.join(f'{c!r} ({row[c]!r})' for c in found)} disagree")
    return next(iter(found.values()), None)


LABEL_WORDS = {
    **dict.fromkeys(("true", "1", "good", "desirable", "chosen"), True),
    **dict.fromkeys(("false", "0", "bad", "undesirable", "rejected"), False),
}


def _label(value: Any) -> bool | None:
    if isinstance(value, str):
        return LABEL_WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def row_weight(row: Mapping[str, Any]) -> int | None:
    """0 if the row must not be trained on, 1 if it must, None if it does not say so.

    Raises ValueError for any other weight, which would be ignored silently, and if two columns disagree.
    """
    found: dict[str, int] = {}
    if ANY_WEIGHT.isdisjoint(row):
        return None
    for column in WEIGHTS:
        value = row.get(column)
        label = _label(value)
        if label is not None:
            found[column] = int(label)
        elif column in WEIGHTS[:2] and has_value(value):
            raise UnreadValue(
                f"{column!r} must be 0 or 1 (the row is left out or trained on), found {value!r:.40}",
                hint=ignoring(column),
            )
    if len(set(found.values())) > 1:
        raise ValueError(f"{' and '.join(f'{c!r} ({row[c]!r})' for c in found)} disagree")
    return next(iter(found.values()), None)
