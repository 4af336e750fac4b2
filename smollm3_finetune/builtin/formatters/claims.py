"""Which rows are for which bundled formatter, told from the columns alone. Light: imported by every discovery.

Ranks decide rows that are two things at once: preference pairs before everything, because the better conversation of
a pair is all that the other columns repeat; prompt and completion after lists of turns, whose first question and
answer they often repeat; raw text last, because other shapes carry their own rendering in a `text` column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

TURN_COLUMNS = ("messages", "conversation", "conversations")
"""Where lists of turns stand, also as JSON text; the first that is there is read."""
PREFERENCE_RANK = 10
PROMPT_COMPLETION_RANK = -5
TEXT_RANK = -10


def turn_list(row: Mapping[str, Any]) -> tuple[str, Sequence[Any]] | None:
    """The column that holds the row's turns, and these; None where there is none."""
    lists = ((column, _as_list(row.get(column))) for column in TURN_COLUMNS)
    return next(((column, turns) for column, turns in lists if turns is not None), None)


def looks_like_list(value: Any) -> bool:
    """Whether a value is text that may be a JSON list, which is all that a CSV column can hold of one."""
    return isinstance(value, str) and value.lstrip().startswith("[")


def _as_list(value: Any) -> Sequence[Any] | None:
    if looks_like_list(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list | tuple) else None


def says_from(turns: Sequence[Any], default: bool) -> bool:
    """Whether turns name their speaker with `from` (sharegpt) and not `role`; `default` where the first has no one."""
    first = next(iter(turns), None)
    if not isinstance(first, Mapping) or ("from" in first) == ("role" in first):
        return default
    return "from" in first


def _names_speakers(row: Mapping[str, Any]) -> bool | None:
    """Whether the row's turns are sharegpt's; None where it has no turns."""
    found = turn_list(row)
    return None if found is None else says_from(found[1], default=found[0] == "conversations")


def messages(row: Mapping[str, Any]) -> bool:
    return _names_speakers(row) is False


def sharegpt(row: Mapping[str, Any]) -> bool:
    return _names_speakers(row) is True


def alpaca(row: Mapping[str, Any]) -> bool:
    return "instruction" in row and "output" in row


def prompt_completion(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and ("completion" in row or "response" in row)


def preference(row: Mapping[str, Any]) -> bool:
    """Both columns, and filled: a table of mixed rows has them empty where a row is no pair."""
    return all(row.get(column) is not None for column in ("chosen", "rejected"))


def text(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("text"), str)
