"""Text out of a row: plain strings, and content in typed parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def found(value: Any) -> str:
    """What a value is, for a message: its type, or that it is missing."""
    return "nothing" if value is None else type(value).__name__


def content_text(content: Any, where: str, field: str = "content") -> str:
    """The text of a message: a string, or the text of its typed parts (`text` or `value`) joined.

    `where` is the message's own path (`messages[2]`). Raises ValueError for other parts, by the name of their type.
    """
    if isinstance(content, str):
        return content
    path = f"{where}.{field}"
    if not isinstance(content, list | tuple):
        raise ValueError(f"{where}: {field} must be text or a list of parts, found {found(content)} at {path}")
    return "".join(_part_text(part, where, f"{path}[{n}]") for n, part in enumerate(content))


def _part_text(part: Any, where: str, path: str) -> str:
    if not isinstance(part, Mapping):
        raise ValueError(f"{where}: only text parts are supported, found {found(part)} at {path}")
    if part.get("type") != "text":
        raise ValueError(f"{where}: only text parts are supported, found a part of type {part.get('type')!r} at {path}")
    text = part.get("text")
    text = part.get("value") if text is None else text  # a table fills the key that a row does not use with nulls
    if not isinstance(text, str):
        raise ValueError(f"{where}: a text part has no 'text' and no 'value' that is text, at {path}")
    return text


def required_text(value: Any, where: str) -> str:
    """A string with something in it. Raises ValueError that names the column or field."""
    if not isinstance(value, str) or not value.strip():
        what = "empty text" if isinstance(value, str) else found(value)
        raise ValueError(f"{where} must be text that is not empty, found {what}")
    return value


def optional_text(value: Any, where: str) -> str | None:
    """A string, or None where there is none or only white space. Raises ValueError for anything else."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, found {found(value)}")
    return value if value.strip() else None
