"""Text in a row: plain strings, and content in typed parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def type_name(value: Any) -> str:
    """The type of a value for an error message; `nothing` for None."""
    return "nothing" if value is None else type(value).__name__


def content_text(content: Any, where: str, field: str = "content") -> str:
    """The text of a message: a string, or the text of its typed parts (`text` or `value`) joined.

    `where` is the path of the message (`messages[2]`). Raises ValueError, with the type, for parts that are not text.
    """
    if isinstance(content, str):
        return content
    path = f"{where}.{field}"
    if not isinstance(content, list | tuple):
        raise ValueError(f"{where}: {field} must be text or a list of parts, found {type_name(content)} at {path}")
    return "".join(_part_text(part, where, f"{path}[{n}]") for n, part in enumerate(content))


def _part_text(part: Any, where: str, path: str) -> str:
    if not isinstance(part, Mapping):
        raise ValueError(f"{where}: only text parts are supported, found {type_name(part)} at {path}")
    if part.get("type") != "text":
        raise ValueError(f"{where}: only text parts are supported, found a part of type {part.get('type')!r} at {path}")
    text = part.get("text")
    text = part.get("value") if text is None else text  # tables fill unused keys with nulls
    if not isinstance(text, str):
        raise ValueError(f"{where}: a text part needs text in 'text' or 'value', at {path}")
    return text


def required_text(value: Any, where: str) -> str:
    """The value if it is a non-empty string, else ValueError that names the column or field."""
    if not isinstance(value, str) or not value.strip():
        what = "empty text" if isinstance(value, str) else type_name(value)
        raise ValueError(f"{where} must be non-empty text, found {what}")
    return value


def optional_text(value: Any, where: str) -> str | None:
    """The value if it is a string; None if it is missing or blank. Raises ValueError for anything else."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, found {type_name(value)}")
    return value if value.strip() else None
