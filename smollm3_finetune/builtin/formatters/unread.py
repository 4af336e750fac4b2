"""Columns that no row of a format reads, but whose text belongs to the conversation: an error, not a loss.

Other unread columns, such as an id, are counted by core. A column that only repeats text of the conversation, such as
the question of its first message, is one of these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.files.json import has_value

if TYPE_CHECKING:
    from smollm3_finetune.builtin.formatters.turns import Turn

MEDIA = dict.fromkeys(("images", "videos", "audios", "image", "video", "audio"))
TEXTS = dict.fromkeys(("input", "query", "context", "history", "instruction", "question", "documents"))
"""Columns that belong to the question in the formats of other tools; a set in order."""
NOT_TEXT = ("role", "from", "type", "id", "name")
"""Keys inside such a column whose value is not part of the text."""


class UnreadValue(ValueError):
    """A value that would not be used, and how to use it or to leave it out."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def ignoring(column: str) -> str:
    """The hint for leaving a column out."""
    return f"to leave the column out: --set 'data.ignore_columns=[{column}]'"


def refuse_media(row: Mapping[str, Any]) -> None:
    """Raises ValueError for a row with images, videos or audio."""
    for column in MEDIA.keys() & row.keys():
        if has_value(row.get(column)):
            raise UnreadValue(f"{column!r} is not supported; only text is", hint=ignoring(column))


def refuse_lost_text(row: Mapping[str, Any], turns: Sequence[Turn], read: Collection[str]) -> None:
    """Raises ValueError for the first of `TEXTS` that is not in `read` and has text that is in no turn.

    The hint names the option that reads it.
    """
    if TEXTS.keys().isdisjoint(row) or not (found := [c for c in TEXTS if c not in read and has_value(row.get(c))]):
        return
    for column in found:
        value = row[column]
        whole = "\n".join(str(turn.message["content"]) for turn in turns)
        if all(_contains(whole, text) for text in _texts(value)):
            continue
        what = f"{column!r} has text that is not in the conversation, and is not read in this format"
        if "input" in read and isinstance(value, str):
            raise UnreadValue(
                what, hint=f"to append it to the question: --set formatter.input={column}; {ignoring(column)}"
            )
        raise UnreadValue(what, hint=f"put it into the messages; {ignoring(column)}")


def _texts(value: Any) -> Iterator[str]:
    """Each piece of text in a value of a row."""
    if isinstance(value, str):
        if not value.isspace() and value:
            yield value.strip()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in NOT_TEXT:
                yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _contains(whole: str, text: str) -> bool:
    """Whether `text` occurs in `whole`, and not inside a word."""
    at = whole.find(text)
    while at >= 0:
        before, after = whole[at - 1 : at], whole[at + len(text) : at + len(text) + 1]
        inside = (before.isalnum() and text[0].isalnum()) or (after.isalnum() and text[-1].isalnum())
        if not inside:
            return True
        at = whole.find(text, at + 1)
    return False
