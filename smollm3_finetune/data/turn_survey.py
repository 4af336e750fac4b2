"""The answers and tool calls that a run would train on, from a sample of the rows, without tokenizing them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from smollm3_finetune.api import Conversation
from smollm3_finetune.data.chat_template.notes import NO_PREFIX, NO_TRACE, REASONS, WARNED
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.rows import Rows
from smollm3_finetune.data.shares import Shares, shares

SAMPLE = 100
"""Rows of each source that are rendered."""


@dataclass(kw_only=True)
class SourceTurns:
    """The turns of the first rows of a source."""

    title: str
    rows: int = 0
    shares: Shares = field(default_factory=Shares)
    notes: Counter[str] = field(default_factory=Counter)
    """Rows by note."""

    def warnings(self) -> list[str]:
        """What a user should know before training."""
        about = f"{self.title}, first {self.rows} rows" if self.rows == SAMPLE else self.title
        found = [note for note in sorted(self.notes) if note.startswith(WARNED)]
        if self.shares.many:
            why = [REASONS[note] for note in (NO_TRACE, NO_PREFIX) if note in self.notes]
            found.append(": ".join([self.shares.sentence(), *why]))
        return [f"{about}: {warning}" for warning in found]

    def as_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, **asdict(self.shares), "warnings": self.warnings()}


def survey_turns(rows: Rows, renderer: Renderer) -> list[SourceTurns]:
    """The turns of the first rows of each source; cutting to the maximum length is not counted.

    Raises DataError if the template refuses a row, and ModelError if there is no template.
    """
    found = []
    for source in rows.sources:
        turns = SourceTurns(title=source.source.title)
        for _, conversation in islice(source.conversations(), SAMPLE):
            turns.rows += 1
            left_out = bool(rows.needs.missing(conversation)) or (
                conversation.desirable is False and not rows.uses_labels
            )
            if conversation.text is None and not left_out:
                trained, notes = trained_turns(renderer, conversation)
                turns.shares.add(shares(conversation, trained))
                turns.notes.update(notes)
        found.append(turns)
    return found


def trained_turns(renderer: Renderer, conversation: Conversation) -> tuple[set[int], set[str]]:
    """The messages of a conversation that have supervised text in one of its examples, and notes."""
    rendered = renderer.rendered(conversation)
    trained, notes = set(rendered.turns), set(rendered.notes)
    left = rendered.rewritten if conversation.rejected is None else []
    while left:
        own = renderer.rendered(renderer.ending_at(conversation, left[-1], left))
        trained |= set(own.turns)
        notes |= set(own.notes)
        left = [i for i in own.rewritten if i < left[-1]]
    return trained, notes
