"""Columns that rows of any chat shape may have: system, tools, chat_template_kwargs; and those that none may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.builtin.formatters.content import found, optional_text
from smollm3_finetune.builtin.formatters.tools import parse_json, schemas
from smollm3_finetune.builtin.formatters.turns import Turn, text_turn

MEDIA = ("images", "videos", "audios")
RENDERERS_OWN = frozenset(
    {"messages", "conversation", "documents", "tokenize", "add_generation_prompt", "continue_final_message",
     "chat_template", "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding", "truncation",
     "max_length", "tokenizer_kwargs"}
)  # fmt: skip
"""Arguments of apply_chat_template that say how to render, which a row has no say in."""


def with_system(turns: Sequence[Turn], row: Mapping[str, Any]) -> list[Turn]:
    """The turns after the prompt of a `system` column, if there is one.

    Raises ValueError where the turns begin with another system prompt.
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
    """The `tools` column, or `functions`, which came before it in OpenAI's API."""
    found_tools = schemas(row.get("tools"), "tools")
    if found_tools:
        return found_tools
    return tuple({"type": "function", "function": f} for f in schemas(row.get("functions"), "functions"))


def template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """The `chat_template_kwargs` column, without what says nothing: nulls and empty lists, which tables fill in.

    Raises ValueError for values that a template would take for something else: 'false' is true, and a list of tools
    as text is a list of letters.
    """
    column = "chat_template_kwargs"
    value = row.get(column)
    if isinstance(value, str):
        value = parse_json(value, column) if value.strip() else None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{column} must be an object, found {found(value)}")
    kwargs = {str(k): v for k, v in value.items() if v is not None and v != [] and v != {}}
    own = sorted(RENDERERS_OWN & set(kwargs))
    if own:
        raise ValueError(f"{column}.{own[0]} is not for a row to say")
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


def refuse_media(row: Mapping[str, Any]) -> None:
    """Raises ValueError for a row that needs its pictures or sounds to make sense."""
    for column in MEDIA:
        if row.get(column):
            raise ValueError(f"{column!r} is not supported, only text is")
