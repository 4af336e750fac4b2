"""Tests: the conversations that rows become, and the errors for unusable rows."""

from __future__ import annotations

import pytest
from smollm3_finetune.testing import FormatterConformance

from smollm3_tickets import claims
from smollm3_tickets.formatter import TicketsFormatter
from smollm3_tickets.options import TicketsOptions

ROW = {"question": "What is 1 + 1?", "answer": "2"}


class TestTickets(FormatterConformance):
    """The tests of the kit: claims, conversations, and the columns that are read."""

    component = "tickets"
    rows = (ROW, {**ROW, "id": 17})


def test_a_row_becomes_two_turns() -> None:
    conversation = TicketsFormatter(TicketsOptions())(ROW)
    turns = [(m["role"], m["content"]) for m in conversation.messages]
    assert turns == [("user", "What is 1 + 1?"), ("assistant", "2")]
    assert conversation.supervised_messages() == [1]


def test_the_options_name_the_columns_and_add_a_system_message() -> None:
    options = TicketsOptions(question="q", answer="a", system="Be brief.")
    conversation = TicketsFormatter(options)({"q": "Well?", "a": "Yes."})
    assert [m["role"] for m in conversation.messages] == ["system", "user", "assistant"]
    assert conversation.messages[0]["content"] == "Be brief."


@pytest.mark.parametrize("row", [{}, {"question": "Well?"}, {**ROW, "answer": "  "}, {**ROW, "question": 3}])
def test_an_unusable_row_raises_a_clear_error(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must hold text"):
        TicketsFormatter(TicketsOptions())(row)


def test_rows_are_recognized_by_their_columns() -> None:
    assert claims(ROW)
    assert not claims({"messages": []})
    assert not claims({"question": "Well?"})
