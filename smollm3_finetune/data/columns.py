"""The columns of rows that the formatter does not read, counted by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smollm3_finetune.api import Conversation, Formatter
from smollm3_finetune.config.yaml12 import one_line
from smollm3_finetune.data.counts import counted
from smollm3_finetune.data.files import Row
from smollm3_finetune.errors import PluginError
from smollm3_finetune.files.json import has_value

KNOWN_ROWS = 1000
"""Combinations of columns that are remembered; rows of one file seldom have more than a few."""
NAMES = 1000
"""Columns that are counted by name; rows whose columns are data can have any number of them."""
SHOWN, NAME = 8, 60
"""How many names are shown, and how many characters of each."""


def stated_columns(formatter: Formatter) -> frozenset[str] | None:
    """The columns that a formatter states as read; None if it states none. Raises PluginError for another value."""
    columns: Any = getattr(formatter, "columns", None)
    if columns is None:
        return None
    if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise PluginError(
            f"{type(formatter).__name__}.columns must be a collection of names of columns, found {columns!r}",
            hint='columns = ("question", "answer")',
        )
    return frozenset(columns)


class UnreadColumns:
    """Counts the rows that have a value in a column that is not read."""

    def __init__(self, columns: frozenset[str] | None) -> None:
        """`columns` are those that are read; None: not known, so nothing is counted."""
        self.columns = columns
        self.counts: Counter[str] = Counter()
        self._others: dict[tuple[str, ...], tuple[str, ...]] = {}

    def observe(self, row: Mapping[str, Any], conversation: Conversation) -> None:
        for name in self._other_columns(row):
            if has_value(row[name]):
                self._count(name)
        for name in conversation.unread:
            self._count(name)

    def _other_columns(self, row: Mapping[str, Any]) -> Sequence[str]:
        """The columns of a row that are not read, whether they have a value or not."""
        if self.columns is None:
            return ()
        names = tuple(row)
        others = self._others.get(names)
        if others is None:
            others = tuple(n for n in names if n not in self.columns)
            if len(self._others) < KNOWN_ROWS:
                self._others[names] = others
        return others

    def _count(self, name: str) -> None:
        if name in self.counts or len(self.counts) < NAMES:
            self.counts[name] += 1


def without_columns(rows: Iterator[Row], columns: frozenset[str]) -> Iterator[Row]:
    """The rows without the columns that the configuration leaves out."""
    for row in rows:
        yield Row({name: value for name, value in row.value.items() if name not in columns}, row.where)


def shown(counts: Mapping[str, int], rows: int) -> str:
    """Unread columns with their numbers of rows, most frequent first: `id, date (6 of 6 rows), input (2 of 6 rows)`."""
    groups: dict[int, list[str]] = {}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    for name, times in ordered[:SHOWN]:
        groups.setdefault(times, []).append(one_line(name if len(name) <= NAME else f"{name[:NAME]}…"))
    parts = [f"{', '.join(names)} ({times:,} of {counted(rows, 'row')})" for times, names in groups.items()]
    more = len(ordered) - SHOWN
    return ", ".join(parts) + (f", and {counted(more, 'more column')}" if more > 0 else "")
