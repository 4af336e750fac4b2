"""Tests: the conversations that tickets become, and the errors for damaged ones."""

from __future__ import annotations

from typing import Any

import pytest
from smollm3_tickets import claims
from smollm3_tickets.formatter import TicketsFormatter
from smollm3_tickets.options import TicketsOptions

from smollm3_finetune.testing import FormatterConformance

ASKED = {"from": "customer", "text": "My badge 123-456-789 is refused, mail jo@example.com."}
ANSWERED = {"from": "agent", "text": "Please renew it at the desk."}
TICKET = {"subject": "Cannot log in", "thread": [ASKED, ANSWERED], "status": "solved", "rating": "good"}


class TestTickets(FormatterConformance):
    """The tests of the kit: claims, conversations, and the columns that are read."""

    component = "tickets"
    rows = (TICKET, {"subject": "", "thread": [ASKED, ANSWERED], "id": 17})


def converted(row: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    messages = TicketsFormatter(TicketsOptions(**options))(row).messages
    return [(message["role"], message["content"]) for message in messages]


def test_a_ticket_becomes_a_question_with_its_subject_and_an_answer() -> None:
    question = "Cannot log in\n\nMy badge [number] is refused, mail [email]."
    assert converted(TICKET) == [("user", question), ("assistant", "Please renew it at the desk.")]
    assert "jo@example.com" in converted(TICKET, redact=False, system="Be brief.")[1][1]


def test_internal_notes_are_dropped_and_messages_of_one_side_are_joined() -> None:
    note = {"from": "agent", "text": "He is new.", "internal": True}
    thanks = {"from": "bot", "text": "We received your ticket.", "date": "2026-01-02"}
    row = {"subject": "Hi", "thread": [ASKED, note, thanks, ANSWERED]}
    assert [role for role, _ in converted(row)] == ["user", "assistant"]
    assert [role for role, _ in converted(row, agents=("agent", "bot"))] == ["user", "assistant"]
    assert converted(row, agents=("agent", "bot"))[1][1] == "We received your ticket.\n\nPlease renew it at the desk."
    assert TicketsFormatter(TicketsOptions())(row).unread == ("thread[].date",)


def test_ratings_are_labels_and_other_statuses_are_not_supervised() -> None:
    formatter = TicketsFormatter(TicketsOptions(statuses=("solved",)))
    assert (formatter(TICKET).desirable, formatter(TICKET).supervised_messages()) == (True, [1])
    bad = formatter({**TICKET, "rating": "bad", "status": "open"})
    assert (bad.desirable, bad.supervised_messages()) == (False, [])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**TICKET, "thread": "text"}, "list of messages"),
        ({**TICKET, "thread": [ASKED]}, "and an answer"),
        ({**TICKET, "thread": [ANSWERED]}, "a message of the customer"),
        ({**TICKET, "thread": [ASKED, {"from": "agent", "text": " "}]}, "message 2 of the thread"),
        ({**TICKET, "subject": None}, "'subject' must hold text"),
        ({**TICKET, "rating": 5}, "'rating' must be"),
    ],
)
def test_a_damaged_ticket_is_a_clear_error(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TicketsFormatter(TicketsOptions())(row)


def test_tickets_are_recognized_by_their_columns() -> None:
    assert claims(TICKET)
    assert not claims({"messages": []})
    assert not claims({"subject": "Hi", "thread": "text"})
