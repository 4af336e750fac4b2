"""Which rows are for which bundled formatter, told from the columns alone. Light: imported by every discovery.

Ranks decide rows that are two things at once: preference pairs before everything, because the better conversation of
a pair is all that the other columns repeat; prompt and completion after lists of turns, whose first question and
answer they often repeat; raw text last, because other shapes carry their own rendering in a `text` column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TURN_COLUMNS = ("messages", "conversation", "conversations")
"""Where lists of turns stand; the first that is there is read."""
PREFERENCE_RANK = 10
PROMPT_COMPLETION_RANK = -5
TEXT_RANK = -10


def turn_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds the row's turns, or None."""
    return next((c for c in TURN_COLUMNS if isinstance(row.get(c), list | tuple)), None)


def says_from(turns: Sequence[Any], default: bool) -> bool:
    """Whether turns name their speaker with `from` (sharegpt) and not `role`; `default` where the first has no one."""
    first = next(iter(turns), None)
    if not isinstance(first, Mapping) or ("from" in first) == ("role" in first):
        return default
    return "from" in first


def messages(row: Mapping[str, Any]) -> bool:
    column = turn_column(row)
    return column is not None and not says_from(row[column], default=column == "conversations")


def sharegpt(row: Mapping[str, Any]) -> bool:
    column = turn_column(row)
    return column is not None and says_from(row[column], default=column == "conversations")


def alpaca(row: Mapping[str, Any]) -> bool:
    return "instruction" in row and "output" in row


def prompt_completion(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and ("completion" in row or "response" in row)


def preference(row: Mapping[str, Any]) -> bool:
    """Both columns, and filled: a table of mixed rows has them empty where a row is no pair."""
    return all(row.get(column) is not None for column in ("chosen", "rejected"))


def text(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("text"), str)
