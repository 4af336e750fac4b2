"""Columns that all chat formats support (system, tools, chat_template_kwargs), and columns that none supports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.builtin.formatters.content import optional_text
from smollm3_finetune.builtin.formatters.tools import parse_json, schemas
from smollm3_finetune.builtin.formatters.turns import Turn, text_turn
from smollm3_finetune.files.json import json_type

MEDIA = ("images", "videos", "audios")
LABELS = ("label", "desirable", "kto_tag")
"""The columns that can say whether the answer of a row is good."""
RENDERER_ARGUMENTS = frozenset(
    {"messages", "conversation", "documents", "tokenize", "add_generation_prompt", "continue_final_message",
     "chat_template", "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding", "truncation",
     "max_length", "tokenizer_kwargs"}
)  # fmt: skip
"""Arguments of apply_chat_template that the renderer sets and a row cannot change."""


def with_system(turns: Sequence[Turn], row: Mapping[str, Any]) -> list[Turn]:
    """The turns after the prompt of a `system` column, if there is one.

    Raises ValueError if the turns begin with a different system prompt.
    """
    system = optional_text(row.get("system"), "'system'")
    if system is None:
        return list(turns)
    if turns and turns[0].role == "system":
        if turns[0].message["content"] != system:
            raise ValueError(f"'system' and {turns[0].where} are two different system prompts")
        return list(turns)
    return [text_turn("system", system, "system"), *turns]


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
    """Whether the row labels its answer as good: true, false, 1 or 0, or one of them as text, as in a CSV file.

    None if it has no label; other values, such as the name of a class, are not labels of this kind. Raises ValueError
    if two columns disagree.
    """
    found = {column: label for column in LABELS if (label := _label(row.get(column))) is not None}
    if len(set(found.values())) > 1:
        raise ValueError(f"{' and '.join(f'{c!r} ({row[c]!r})' for c in found)} disagree")
    return next(iter(found.values()), None)


def _label(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def refuse_media(row: Mapping[str, Any]) -> None:
    """Raises ValueError for a row with images, videos or audio."""
    for column in MEDIA:
        if row.get(column):
            raise ValueError(f"{column!r} is not supported; only text is")
