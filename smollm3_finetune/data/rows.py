"""All rows of a run as conversations, streamed from their sources as often as needed and never kept in memory.

A first pass (`survey`) reads and formats every row, so that an invalid row is reported with file and line before
anything else happens. It keeps only counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from smollm3_finetune.api import Conversation, Progress, options_dict
from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent, choose
from smollm3_finetune.data.files import Row, read_file
from smollm3_finetune.data.formatting import formatted, recognize
from smollm3_finetune.data.hub import hub_rows
from smollm3_finetune.data.sources import Source
from smollm3_finetune.data.split import SplitThreshold, position
from smollm3_finetune.errors import DataError
from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.progress import Silent


def source_rows(source: Source, limit: int | None = None) -> Iterator[Row]:
    """The rows of a source, at most its own limit and `limit`."""
    limits = [n for n in (limit, source.config.limit) if n is not None]
    about = source.config
    rows = (
        hub_rows(source.hub, about.subset, about.split, about.revision)
        if source.hub
        else chain.from_iterable(read_file(f) for f in source.files)
    )
    return islice(rows, min(limits, default=None))


@dataclass(frozen=True, kw_only=True)
class FormattedSource:
    """A source and the formatter of its rows."""

    source: Source
    formatter: SelectedComponent
    limit: int | None = None

    def conversations(self) -> Iterator[tuple[str, Conversation]]:
        """Yields (where, conversation). Raises DataError that names the first invalid rows by file and line."""
        return formatted(self.formatter.create(), source_rows(self.source, self.limit), self.formatter)

    def identity(self) -> list[Any]:
        """Everything that determines the conversations: the contents of the rows, the formatter and the limits."""
        source, component = self.source, self.formatter.component
        config = source.config
        content = [f"hub:{source.hub}@{config.revision}:{config.subset}:{config.split}"]
        if source.hub is None:
            content = [file_sha256(f) for f in source.files]
        options = options_dict(self.formatter.options)
        return [content, component.full_name, component.version, options, self.limit, config.limit, config.weight]


def with_formatter(
    registry: Registry, source: Source, named: SelectedComponent | None, limit: int | None
) -> FormattedSource:
    """A source with its own formatter, else the named one, else the one that recognizes its first row.

    If the source's own formatter is also the named one, it has the options of the named one, else none.
    """
    own = source.config.formatter
    if own is None and named is None:
        own = recognize(registry, next(source_rows(source, 1))).full_name
    if own is not None:
        choice = choose(registry, FORMATTER, own, {})
        if named is None or named.component.full_name != choice.component.full_name:
            return FormattedSource(source=source, formatter=choice, limit=limit)
    assert named is not None
    return FormattedSource(source=source, formatter=named, limit=limit)


@dataclass(frozen=True)
class PositionedRow:
    """A conversation, the index of its source, its location there, and its position in [0, 1) for the split."""

    source: int
    where: str
    position: float
    conversation: Conversation


@dataclass(kw_only=True)
class Survey:
    """The results of the first pass. Each list has one item for each source."""

    threshold: float
    """Rows whose position is below it are held out."""
    train: list[int]
    held_out: list[int]
    example: Conversation | None
    """The row with the shortest question, a held-out one if possible; None if no row has a question."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Every row of a run and how they are split."""

    sources: tuple[FormattedSource, ...]
    seed: int
    held_out: float
    """Fraction of rows."""

    def positioned(self) -> Iterator[PositionedRow]:
        """Every row, in order."""
        for index, source in enumerate(self.sources):
            for where, conversation in source.conversations():
                try:
                    place = position(conversation, self.seed)
                except UnicodeEncodeError as e:
                    raise DataError(f"{where}: the text contains half a character (a lone surrogate)") from e
                yield PositionedRow(index, where, place, conversation)

    def survey(self, progress: Progress | None = None) -> Survey:
        """Read every row once. Raises DataError if rows are invalid, or too few to split."""
        threshold = SplitThreshold(self.held_out)
        counts, below = _Counts(len(self.sources)), _Counts(len(self.sources))
        shortest = _Shortest()
        with (progress or Silent()).task("reading rows") as task:
            for row in self.positioned():
                threshold.observe(row.position)
                counts.add(row.source)
                if row.position < self.held_out:
                    below.add(row.source)
                shortest.observe(row.conversation, held_out=row.position < self.held_out)
                task.advance()
        value = threshold.value()
        if value != self.held_out:  # few rows: the threshold moved so that both sides have one
            below, shortest = _Counts(len(self.sources)), _Shortest()
            for row in self.positioned():
                if row.position < value:
                    below.add(row.source)
                shortest.observe(row.conversation, held_out=row.position < value)
        train = [c - b for c, b in zip(counts.by_source, below.by_source, strict=True)]
        return Survey(threshold=value, train=train, held_out=below.by_source, example=shortest.conversation())

    def identity(self) -> list[Any]:
        """Everything that determines the rows and their split, for the keys of cache entries."""
        return [self.seed, self.held_out, [s.identity() for s in self.sources]]


class _Counts:
    def __init__(self, sources: int) -> None:
        self.by_source = [0] * sources

    def add(self, index: int) -> None:
        self.by_source[index] += 1


@dataclass
class _Shortest:
    """Finds the conversation with the shortest question, which is quick to answer."""

    found: dict[bool, Conversation] = field(default_factory=dict)

    def observe(self, conversation: Conversation, *, held_out: bool) -> None:
        question = first_question(conversation)
        if question and (held_out not in self.found or _size(question) < _size(first_question(self.found[held_out]))):
            self.found[held_out] = conversation

    def conversation(self) -> Conversation | None:
        return self.found.get(True) or self.found.get(False)


def first_question(conversation: Conversation) -> Sequence[Mapping[str, Any]]:
    """The messages before the first answer; empty if no user message comes directly before it."""
    first = next((i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"), 0)
    return conversation.messages[:first] if first and conversation.messages[first - 1]["role"] == "user" else ()


def _size(messages: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    return len(messages), len(str(messages))
