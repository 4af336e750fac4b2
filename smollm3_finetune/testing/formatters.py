"""Conformance tests for formatters: they claim and convert their rows, and reject others with a reason.

from smollm3_finetune.testing import FormatterConformance

class TestTickets(FormatterConformance):
    component = "tickets"
    rows = ({"question": "How do I log in?", "answer": "With your badge.", "ticket": 17},)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from smollm3_finetune.api import Conversation
from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.data.columns import stated_columns
from smollm3_finetune.testing.conformance import Conformance, demand, fail, outcome, plugin_path, skip
from smollm3_finetune.testing.conversations import check_conversation
from smollm3_finetune.testing.light import check_light

SAID = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]
KNOWN: Sequence[Mapping[str, Any]] = (
    {"messages": SAID},
    {"conversations": [{"from": "human", "value": "What is 1 + 1?"}, {"from": "gpt", "value": "2"}]},
    {"instruction": "Add.", "input": "1 and 1", "output": "2"},
    {"prompt": "What is 1 + 1?", "completion": "2"},
    {"question": "What is 1 + 1?", "answer": "2"},
    {"prompt": "What is 1 + 1?", "chosen": "2", "rejected": "3"},
    {"text": "One and one is two."},
)
"""Rows in the usual formats, for a class without rows."""
ODD: Sequence[Any] = (None, "", "  ", 7, 0.5, True, [], {}, [None], [7], ["text"], [{}], [[]], {"a": None})
"""Values that a column of a damaged file may have."""
STRANGE: Sequence[Mapping[str, Any]] = ({}, {"unrelated column": "text"}, {"": None})
"""Rows that no formatter reads."""


class RecordingRow(Mapping[str, Any]):
    """A row that records which of its columns are read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row, self.read = row, set[str]()

    def __getitem__(self, column: str) -> Any:
        self.read.add(column)
        return self.row[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)


class FormatterConformance(Conformance):
    """Subclass it, name the formatter and give rows that it reads; the tests are inherited."""

    kind = FORMATTER
    rows: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Rows that the formatter converts with the options of the class; together they should have every column it reads,
    and at least one that it does not. Empty: rows in the usual formats that `claims` recognizes, or a row with text in
    each of its `columns`."""

    def formatter(self) -> Any:
        return self.choose().create()

    def known_rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows of the class, or rows that the formatter probably reads; skips the test if there are none."""
        if self.rows:
            return self.rows
        claims, formatter = self.spec().claims, self.formatter()
        found = [row for row in KNOWN if claims is not None and outcome(claims, row)[0] is True]
        columns, _ = outcome(stated_columns, formatter)
        if not found and columns:
            found = [dict.fromkeys(sorted(columns), "Some text.")]
            found = [row for row in found if outcome(formatter, row)[1] is None]
        if not found:
            skip("the kit knows no row that this formatter reads: set `rows` of the class")
        return found

    # ----------------------------------------------------------------------------------------- claims

    def test_claims_its_rows(self) -> None:
        claims = self.spec().claims
        if claims is None:
            skip("the descriptor has no claims(): users pass --formatter")
        for n, row in enumerate(self.known_rows()):
            before = copy.deepcopy(dict(row))
            claimed, error = outcome(claims, row)
            demand(error is None, f"claims(rows[{n}]) raised {type(error).__name__}: {error}")
            demand(bool(claimed), f"claims(rows[{n}]) is false, but this formatter reads the row")
            demand(isinstance(claimed, bool), f"claims(rows[{n}]) returned {claimed!r}; expected True or False")
            demand(dict(row) == before, f"claims() changed rows[{n}]: the same row is read again")

    def test_claims_no_other_rows(self) -> None:
        claims = self.spec().claims
        if claims is None:
            skip("the descriptor has no claims(): users pass --formatter")
        formatter = self.formatter()
        for row in STRANGE:
            claimed, error = outcome(claims, row)
            demand(error is None, f"claims({row!r}) raised {type(error).__name__}: it must return a bool for every row")
            if claimed:
                _, error = outcome(formatter, row)
                why = f"and the formatter rejects it: {error}" if error else "which has none of its columns"
                fail(f"claims({row!r}) is true, {why}; claim a row by its columns, or rows of other formats come here")
        for row, column, value in self._damaged():
            _, error = outcome(claims, row)
            demand(
                error is None,
                f"claims() raised {type(error).__name__} for a row with {column!r}: {value!r}: it must return a bool "
                "for every row",
            )

    def test_claims_is_light(self) -> None:
        if self.spec().claims is None:
            skip("the descriptor has no claims()")
        plugins = [str(plugin_path(type(self), p)) for p in self.plugins]
        check_light(self.kind, plugins, self.component, dict(self.rows[0]) if self.rows else {})

    # ------------------------------------------------------------------------------------- conversion

    def test_converts_its_rows_without_changing_them(self) -> None:
        formatter = self.formatter()
        for n, row in enumerate(self.known_rows()):
            before = copy.deepcopy(dict(row))
            made, error = outcome(formatter, row)
            demand(error is None, f"rows[{n}] raised {type(error).__name__}: {error}")
            demand(isinstance(made, Conversation), f"rows[{n}] became a {type(made).__name__}, not a Conversation")
            demand(dict(row) == before, f"rows[{n}] was changed: the same row can be read again")
            assert isinstance(made, Conversation)
            check_conversation(made, f"rows[{n}]")
            again, _ = outcome(formatter, row)
            demand(again == made, f"rows[{n}] became another conversation the second time")
            other, error = outcome(self.formatter(), row)
            demand(other == made and error is None, f"rows[{n}] becomes another conversation in a new formatter")

    def test_an_empty_row_is_a_value_error(self) -> None:
        made, error = outcome(self.formatter(), {})
        demand(isinstance(error, ValueError), f"a row without columns must raise ValueError, not {error or made!r}")

    def test_damaged_rows_are_converted_or_a_value_error(self) -> None:
        formatter = self.formatter()
        for row, column, value in self._damaged():
            what = f"a row with {column!r}: {value!r}" if column in row else f"a row without {column!r}"
            made, error = outcome(formatter, row)
            if error is None:
                demand(isinstance(made, Conversation), f"{what} became a {type(made).__name__}, not a Conversation")
                assert isinstance(made, Conversation)
                check_conversation(made, what)
                continue
            demand(
                isinstance(error, ValueError),
                f"{what} raised {type(error).__name__}: {error}; check the type of the value, and raise ValueError "
                "with the reason",
            )
            demand(
                bool(str(error).strip()), f"{what} raised ValueError without a reason: users see the text of the error"
            )

    def test_states_the_columns_that_it_reads(self) -> None:
        formatter, rows = self.formatter(), self.known_rows()
        columns, error = outcome(stated_columns, formatter)
        demand(error is None, f"columns: {error}")
        if columns is None:
            skip("the formatter has no `columns`, so users do not see which columns are not read")
        assert columns is not None
        for n, row in enumerate(rows):
            made, _ = outcome(formatter, row)
            for column in row:
                if column in columns:
                    continue
                rest = {name: value for name, value in row.items() if name != column}
                without, _ = outcome(formatter, rest)
                if without != made:
                    fail(f"columns lacks {column!r}: the conversation of rows[{n}] depends on it")
        seen = {column for row in rows for column in _read(formatter, row)}
        unused = sorted((columns & {c for row in rows for c in row}) - seen)
        demand(not unused, f"columns has {', '.join(map(repr, unused))}, which the formatter does not read")

    def _damaged(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        """Each row without one of the columns that are read, or with an odd value in it."""
        formatter = self.formatter()
        for row in self.known_rows():
            for column in sorted(_read(formatter, row) & set(row)):
                yield {name: value for name, value in row.items() if name != column}, column, None
                for value in ODD:
                    yield {**row, column: copy.deepcopy(value)}, column, value


def _read(formatter: Any, row: Mapping[str, Any]) -> set[str]:
    """The columns of a row that a formatter looks at."""
    recording = RecordingRow(row)
    outcome(formatter, recording)
    return recording.read
