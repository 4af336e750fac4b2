"""Text in a row: plain strings, and content in typed parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import REASONING_FIELDS
from smollm3_finetune.files.json import json_type


def content_and_reasoning(content: Any, where: str, field: str = "content") -> tuple[str, str | None]:
    """The text of a message, and the reasoning in its typed parts; None if no part is reasoning.

    The content is a string, or typed parts: the texts are joined, and so are the pieces of reasoning, with a line break
    between two. `where` is the path of the message (`messages[2]`). Raises ValueError, with the type, for other parts,
    and for reasoning after text, because the reasoning of a message comes before its text.
    """
    if isinstance(content, str):
        return content, None
    path = f"{where}.{field}"
    if not isinstance(content, list | tuple):
        raise ValueError(f"{where}: {field} must be text or a list of parts, found {json_type(content)} at {path}")
    text, reasoning = "", []
    for n, part in enumerate(content):
        kind, piece = _part(part, where, f"{path}[{n}]")
        if kind == "text":
            text += piece
        elif not piece.strip():
            continue
        elif text.strip():
            raise ValueError(f"{where}: reasoning after the text of a message is not supported, found at {path}[{n}]")
        else:
            reasoning.append(piece)
    return text, "\n".join(reasoning) or None


def _part(part: Any, where: str, path: str) -> tuple[str, str]:
    """The kind of a part, `text` or `reasoning`, and its text."""
    supported = "only text and reasoning parts are supported"
    if not isinstance(part, Mapping):
        raise ValueError(f"{where}: {supported}, found {json_type(part)} at {path}")
    kind = part.get("type")
    if kind != "text" and kind not in REASONING_FIELDS:
        raise ValueError(f"{where}: {supported}, found a part of type {kind!r} at {path}")
    values = (part.get(key) for key in dict.fromkeys(("text", "value", kind)))
    text = next((v for v in values if v is not None), None)  # tables fill unused keys with nulls
    if not isinstance(text, str):
        raise ValueError(f"{where}: a {kind} part needs text in 'text' or 'value', at {path}")
    return "text" if kind == "text" else "reasoning", text


def required_text(value: Any, where: str) -> str:
    """The value if it is a non-empty string, else ValueError that names the column or field."""
    if not isinstance(value, str) or not value.strip():
        what = "empty text" if isinstance(value, str) else json_type(value)
        raise ValueError(f"{where} must be non-empty text, found {what}")
    return value


def required_column(row: Mapping[str, Any], column: str, hint: str | None = None) -> Any:
    """The value of a column. Raises ValueError, with `hint`, if the row has no such column."""
    if column not in row:
        columns = ", ".join(repr(c) for c in row) or "none"
        error = ValueError(f"there is no column {column!r} (columns: {columns})")
        error.hint = hint  # type: ignore[attr-defined]  # as DataError has one
        raise error
    return row[column]


def optional_text(value: Any, where: str) -> str | None:
    """The value if it is a string; None if it is missing or blank. Raises ValueError for anything else."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, found {json_type(value)}")
    return value if value.strip() else None
