"""All rows of a run as conversations, streamed from their sources as often as needed and never kept in memory.

A first pass (`survey`) reads and formats every row, so that an invalid row is reported with file and line before
anything else happens. It keeps only counts.
"""

from __future__ import annotations

import shlex
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any

from smollm3_finetune.api import Conversation, Progress, options_dict
from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.components.selection import SelectedComponent, choose, with_options
from smollm3_finetune.data.columns import UnreadColumns, stated_columns, without_columns
from smollm3_finetune.data.files import Row, read_file
from smollm3_finetune.data.formatting import MAX_SHOWN, formatted, recognize
from smollm3_finetune.data.hub import hub_rows
from smollm3_finetune.data.needs import Missing, Needs, format_with
from smollm3_finetune.data.sources import Source
from smollm3_finetune.data.split import SplitThreshold, position
from smollm3_finetune.errors import DataError
from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.progress import Silent


def source_rows(source: Source, limit: int | None = None, ignored: frozenset[str] = frozenset()) -> Iterator[Row]:
    """The rows of a source, at most its own limit and `limit`, without the columns `ignored`."""
    limits = [n for n in (limit, source.config.limit) if n is not None]
    about = source.config
    rows = (
        hub_rows(source.hub, about.subset, about.split, about.revision)
        if source.hub
        else chain.from_iterable(read_file(f) for f in source.files)
    )
    if ignored:
        rows = without_columns(rows, ignored)
    return islice(rows, min(limits, default=None))


@dataclass(frozen=True, kw_only=True)
class FormattedSource:
    """A source and the formatter of its rows."""

    source: Source
    formatter: SelectedComponent
    limit: int | None = None
    ignored: frozenset[str] = frozenset()
    """Columns that are removed from each row."""
    recognized: bool = False
    """Whether the formatter was not named, and the one that recognizes the first row was taken."""

    def conversations(self, unread: UnreadColumns | None = None) -> Iterator[tuple[str, Conversation]]:
        """Yields (where, conversation), and counts columns that are not read in `unread`.

        Raises DataError that names the first invalid rows by file and line.
        """
        rows = source_rows(self.source, self.limit, self.ignored)
        return formatted(self.formatter.create(), rows, self.formatter, unread, self.recognized)

    def unread_columns(self) -> UnreadColumns:
        """A new count of the columns that the formatter does not read."""
        with attributed_to(self.formatter.component):
            return UnreadColumns(stated_columns(self.formatter.create()))

    @cached_property
    def contents(self) -> list[str]:
        """The SHA-256 of each file as it was when first asked for; for a Hub dataset, its commit, subset and split."""
        source, config = self.source, self.source.config
        if source.hub is not None:
            return [f"hub:{source.hub}@{config.revision}:{config.subset}:{config.split}"]
        return [file_sha256(f) for f in source.files]

    def identity(self) -> list[Any]:
        """Everything that determines the conversations: the contents of the rows, the formatter and the limits."""
        source, component = self.source, self.formatter.component
        config = source.config
        options = options_dict(self.formatter.options)
        about = [
            self.contents,
            component.full_name,
            component.version,
            options,
            self.limit,
            config.limit,
            config.weight,
        ]
        about += [sorted(self.ignored)] if self.ignored else []  # sources of earlier versions keep their identity
        return [*about, "validation"] if source.validation else about


def with_formatter(
    registry: Registry,
    source: Source,
    named: SelectedComponent | None,
    limit: int | None,
    ignored: frozenset[str] = frozenset(),
) -> FormattedSource:
    """A source with its own formatter, else the named one, else the one that recognizes its first row.

    If the source's own formatter is also the named one, it has the options of the named one, else none. The columns
    `ignored` are removed from each row first.
    """
    own = source.config.formatter
    recognized = own is None and named is None
    choice = None
    if recognized:
        choice = with_options(recognize(registry, next(source_rows(source, 1, ignored))), {})
    elif own is not None:
        choice = choose(registry, FORMATTER, own, {})
    if choice is not None and (named is None or named.component.full_name != choice.component.full_name):
        return FormattedSource(source=source, formatter=choice, limit=limit, ignored=ignored, recognized=recognized)
    assert named is not None
    return FormattedSource(source=source, formatter=named, limit=limit, ignored=ignored)


@dataclass(frozen=True)
class PositionedRow:
    """A conversation, the index of its source, its location there, and its position in [0, 1) for the split."""

    source: int
    where: str
    position: float
    conversation: Conversation
    validation: bool
    """Whether it is a row of `data.validation`."""
    undesirable: bool
    """Whether it is left out because its label is false and the objective does not use labels."""
    missing: str = ""
    """Why it is left out: the objective needs a field that it does not have; empty if it has all."""

    @property
    def left_out(self) -> bool:
        """Whether it is left out before it is tokenized."""
        return self.undesirable or bool(self.missing)


@dataclass(kw_only=True)
class Survey:
    """The results of the first pass. Each list has one item for each source."""

    threshold: float
    """Rows of `data.path` whose position is below it are held out."""
    train: list[int]
    held_out: list[int]
    undesirable: list[int]
    """Rows that are left out because their label is false."""
    missing: list[Counter[str]]
    """Rows that are left out because they lack a field that the objective needs, by reason."""
    overlap: list[int]
    """Training rows that are also in `data.validation`."""
    overlap_places: list[str]
    """The locations of the first of them."""
    example: Conversation | None
    """The row with the shortest question, a held-out one if possible; None if no row has a question."""
    unread: list[Counter[str]]
    """The columns that the formatter does not read: the number of rows that have a value in each."""
    problem: DataError | None = None
    """Why these rows cannot be trained on, for `data preview`."""

    def holds_out(self, row: PositionedRow) -> bool:
        return row.validation or row.position < self.threshold

    def total(self, source: int) -> int:
        left_out = self.undesirable[source] + self.missing[source].total()
        return self.train[source] + self.held_out[source] + left_out

    def overlap_warning(self) -> str | None:
        """A sentence about training rows that are also in `data.validation`; None if there are none."""
        count = sum(self.overlap)
        if not count:
            return None
        more = ", …" if count > len(self.overlap_places) else ""
        rows = "1 training row is" if count == 1 else f"{count:,} training rows are"
        return (
            f"{rows} also in data.validation ({', '.join(self.overlap_places)}{more}), so the held-out loss is too low"
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Every row of a run and how they are split."""

    sources: tuple[FormattedSource, ...]
    seed: int
    held_out: float
    """Fraction of the rows; has no effect if there are validation sources."""
    uses_labels: bool = False
    """Whether the objective trains on rows with a false label too."""
    needs: Needs = Needs()
    """The fields that the objective needs of every row."""
    registry: Registry | None = None
    """Where a formatter that finds a needed field is looked for; None: none is suggested."""

    @property
    def fraction(self) -> float:
        """The fraction of the training sources that is held out."""
        return 0.0 if any(s.source.validation for s in self.sources) else self.held_out

    def row(self, source: int, where: str, conversation: Conversation) -> PositionedRow:
        """A conversation of a source as a row. Raises DataError if its text is not valid Unicode."""
        try:
            place = position(conversation, self.seed)
        except UnicodeEncodeError as e:
            raise DataError(f"{where}: the text contains half a character (a lone surrogate)") from e
        undesirable = conversation.desirable is False and not self.uses_labels
        validation, missing = self.sources[source].source.validation, self.needs.missing(conversation)
        return PositionedRow(source, where, place, conversation, validation, undesirable and not missing, missing)

    def positioned(self, unread: Sequence[UnreadColumns] | None = None) -> Iterator[PositionedRow]:
        """Every row, in order; those of `data.validation` first. Counts columns that are not read, for each source."""
        for index in sorted(range(len(self.sources)), key=lambda i: not self.sources[i].source.validation):
            yield from self.of_source(index, unread[index] if unread else None)

    def of_source(self, source: int, unread: UnreadColumns | None = None) -> Iterator[PositionedRow]:
        """Every row of one source, in order. Counts columns that are not read."""
        for where, conversation in self.sources[source].conversations(unread):
            yield self.row(source, where, conversation)

    def survey(self, progress: Progress | None = None, *, must_train: bool = True) -> Survey:
        """Read every row once. Raises DataError if rows are invalid.

        Also raises DataError if they cannot be trained on, for example because they are too few to split; without
        `must_train`, the survey has this problem instead, and no row is held out.
        """
        threshold, overlap = SplitThreshold(self.fraction), _Overlap(len(self.sources))
        counts, below, undesirable = (_Counts(len(self.sources)) for _ in range(3))
        missing, firsts = [Counter[str]() for _ in self.sources], dict[int, Missing]()
        shortest, unread = _Shortest(), [s.unread_columns() for s in self.sources]
        with (progress or Silent()).task("reading rows") as task:
            for row in self.positioned(unread):
                task.advance()
                if row.missing:
                    missing[row.source][row.missing] += 1
                    firsts.setdefault(row.source, Missing(row.where, row.conversation, row.missing))
                    continue
                if row.undesirable:
                    undesirable.add(row.source)
                    continue
                held_out = row.validation or row.position < self.fraction
                counts.add(row.source)
                if held_out:
                    below.add(row.source)
                shortest.observe(row.conversation, held_out=held_out)
                overlap.observe(row)
                if not row.validation:
                    threshold.observe(row.position)
        value, problem = self.fraction, self._no_field(counts, undesirable, missing, firsts)
        problem = problem or self._no_rows(counts, undesirable)
        try:
            value = value if problem is not None else threshold.value()
        except DataError as e:
            value, problem = 0.0, e
        if problem is not None and must_train:
            raise problem
        if value != self.fraction:  # few rows: the threshold moved so that both sides have one
            below, shortest = _Counts(len(self.sources)), _Shortest()
            for row in self.positioned():
                if not row.left_out:
                    if row.position < value:
                        below.add(row.source)
                    shortest.observe(row.conversation, held_out=row.position < value)
        train = [c - b for c, b in zip(counts.by_source, below.by_source, strict=True)]
        return Survey(
            threshold=value,
            train=train,
            held_out=below.by_source,
            undesirable=undesirable.by_source,
            missing=missing,
            overlap=overlap.counts.by_source,
            overlap_places=overlap.places,
            unread=[u.counts for u in unread],
            example=shortest.conversation(),
            problem=problem,
        )

    def _no_field(
        self, counts: _Counts, undesirable: _Counts, missing: Sequence[Counter[str]], firsts: Mapping[int, Missing]
    ) -> DataError | None:
        """The error for the first source none of whose rows has a field that the objective needs."""
        for i, first in firsts.items():
            if not counts.by_source[i] and not undesirable.by_source[i]:
                source = self.sources[i]
                return self.needs.error(
                    first, missing[i].total(), source.source.title, partial(self._format_with, source)
                )
        return None

    def _format_with(self, source: FormattedSource, field: str) -> str | None:
        """The name of another formatter that finds `field` in the first row of a source; None if none does."""
        first = next(source_rows(source.source, 1, source.ignored), None)
        if self.registry is None or first is None:
            return None
        return format_with(self.registry, first, field, source.formatter.component.full_name)

    def _no_rows(self, counts: _Counts, undesirable: _Counts) -> DataError | None:
        """The error if every training row, or every row of `data.validation`, is left out because of its label."""
        for key, validation in (("data.path", False), ("data.validation", True)):
            mine = [i for i, s in enumerate(self.sources) if s.source.validation is validation]
            left_out = sum(undesirable.by_source[i] for i in mine)
            if left_out and not any(counts.by_source[i] for i in mine):
                what = "the only row has" if left_out == 1 else f"all {left_out:,} rows have"
                return DataError(
                    f"{key}: {what} a false label, which marks a bad answer, and the objective trains on good answers",
                    hint=f"to see the rows: {self.preview(validation=validation)}",
                )
        return None

    def preview(self, *, validation: bool = False) -> str:
        """The command that shows the rows of `data.path`, or those of `data.validation`."""
        paths = [s.source.config.path for s in self.sources if s.source.validation is validation]
        return " ".join(("smollm3 data preview", *(f"--data {shlex.quote(path)}" for path in paths if path)))

    def identity(self) -> list[Any]:
        """Everything that determines the rows and their split, for the keys of cache entries."""
        return [self.seed, self.fraction, [s.identity() for s in self.sources]]


class _Overlap:
    """Finds training rows that are equal to rows of `data.validation`, which come first; 8 bytes per row of these."""

    def __init__(self, sources: int) -> None:
        self.known, self.is_sorted = array("d"), False
        self.counts, self.places = _Counts(sources), list[str]()

    def observe(self, row: PositionedRow) -> None:
        if row.validation:
            self.known.append(row.position)
            return
        if not self.is_sorted:
            self.known, self.is_sorted = array("d", sorted(self.known)), True
        i = bisect_left(self.known, row.position)
        if i < len(self.known) and self.known[i] == row.position:
            self.counts.add(row.source)
            if len(self.places) < MAX_SHOWN:
                self.places.append(row.where)


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
