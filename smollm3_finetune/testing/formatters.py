"""Conformance tests for formatters: they claim and convert their rows, and state the columns that they read.

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
from smollm3_finetune.testing.conformance import Conformance, demand, fail, outcome, skip

ROLES = ("system", "user", "assistant", "tool")


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
    rows: ClassVar[Sequence[Mapping[str, Any]]]
    """Rows that the formatter converts with the options of the class; together they should have every column it reads,
    and at least one that it does not."""

    def formatter(self) -> Any:
        return self.choose().create()

    def test_claims_its_rows(self) -> None:
        claims = self.spec().claims
        if claims is None:
            skip("the descriptor has no claims(): users pass --formatter")
        for n, row in enumerate(self.rows):
            claimed, error = outcome(claims, row)
            demand(error is None, f"claims(rows[{n}]) raised {type(error).__name__}: {error}")
            demand(bool(claimed), f"claims(rows[{n}]) is false, but this formatter reads the row")

    def test_converts_its_rows_without_changing_them(self) -> None:
        formatter = self.formatter()
        for n, row in enumerate(self.rows):
            before = copy.deepcopy(dict(row))
            made, error = outcome(formatter, row)
            demand(error is None, f"rows[{n}] raised {type(error).__name__}: {error}")
            demand(isinstance(made, Conversation), f"rows[{n}] became a {type(made).__name__}, not a Conversation")
            demand(dict(row) == before, f"rows[{n}] was changed: the same row can be read again")
            assert isinstance(made, Conversation)
            demand(made.text is not None or bool(made.messages), f"rows[{n}] became neither messages nor text")
            for message in made.messages:
                demand(
                    message.get("role") in ROLES, f"rows[{n}]: the role {message.get('role')!r} is not one of {ROLES}"
                )
                content = message.get("content")
                demand(isinstance(content, str), f"rows[{n}]: the content of a message must be text, found {content!r}")
            again, _ = outcome(formatter, row)
            demand(again == made, f"rows[{n}] became another conversation the second time")

    def test_an_empty_row_is_a_value_error(self) -> None:
        made, error = outcome(self.formatter(), {})
        demand(isinstance(error, ValueError), f"a row without columns must raise ValueError, not {error or made!r}")

    def test_states_the_columns_that_it_reads(self) -> None:
        formatter = self.formatter()
        columns, error = outcome(stated_columns, formatter)
        demand(error is None, f"columns: {error}")
        if columns is None:
            skip("the formatter has no `columns`, so users do not see which columns are not read")
        assert columns is not None
        for n, row in enumerate(self.rows):
            made, _ = outcome(formatter, row)
            for column in row:
                if column in columns:
                    continue
                rest = {name: value for name, value in row.items() if name != column}
                without, _ = outcome(formatter, rest)
                if without != made:
                    fail(f"columns lacks {column!r}: the conversation of rows[{n}] depends on it")
        seen = {column for row in self.rows for column in _read(formatter, row)}
        unused = sorted((columns & {c for row in self.rows for c in row}) - seen)
        demand(not unused, f"columns has {', '.join(map(repr, unused))}, which the formatter does not read")


def _read(formatter: Any, row: Mapping[str, Any]) -> set[str]:
    """The columns of a row that a formatter looks at."""
    recording = RecordingRow(row)
    outcome(formatter, recording)
    return recording.read
