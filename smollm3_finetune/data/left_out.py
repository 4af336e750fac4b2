"""Rows without supervised tokens: the reason for each, and the error if no row is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from smollm3_finetune.api import Conversation
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.data.chat_template.notes import REASONS
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.rows import PositionedRow, Rows
from smollm3_finetune.errors import DataError, SmolLM3Error, raise_all

CUT = "cut"
"""The note on a conversation that was truncated."""
NO_LIMIT = 1 << 30
"""A maximum length, in tokens, that cuts nothing."""


class LeftOut(NamedTuple):
    """A row that was left out because it has no supervised tokens."""

    where: str
    why: str
    enough: int | None
    """The maximum length, in tokens, with which it would be kept; None if length is not the reason."""
    first: bool = True
    """Whether it is the first row that was left out."""
    by_objective: bool = False
    """Whether it has supervised tokens, but the objective does not train on it."""


def more_useful(before: LeftOut | None, row: LeftOut) -> LeftOut:
    """The row to name in the error: the first one, or the first that a longer maximum length keeps."""
    if before is None:
        return row
    return row._replace(first=False) if before.enough is None and row.enough is not None else before


class Side(NamedTuple):
    """One side of the split."""

    name: str
    """`training` or `held-out`."""
    rows: int
    left: int
    """Rows with supervised tokens."""
    left_out: LeftOut | None
    """A row that was left out."""


def reason_before_tokens(row: PositionedRow) -> str:
    """Why a row is left out before it is tokenized; empty if it is not."""
    label = "its label is false: a bad answer, which the objective does not use"
    return row.missing or (label if row.undesirable else "")


def reason(row: PositionedRow, notes: Sequence[str], renderer: Renderer, max_length: int) -> LeftOut:
    """Why a row has no supervised tokens; `notes` are those of its rendering."""
    conversation = row.conversation
    if row.left_out:
        return LeftOut(row.where, reason_before_tokens(row), None)
    if conversation.text is None and not conversation.supervised_messages():
        why = next(iter(conversation.lacks.values()), "none of its messages is supervised")
        return LeftOut(row.where, why, None)
    sides = _encoded(row, renderer)
    wholes = [renderer.encode(side, NO_LIMIT) for side in sides]
    firsts = [next((t for t, label in enumerate(w.labels) if t and label != IGNORE_INDEX), None) for w in wholes]
    reasons = [why for note, why in REASONS.items() if note in notes]
    names = ("of the chosen answer ", "of the rejected answer ") if len(sides) > 1 else ("",)
    longest = max(len(w.input_ids) for w in wholes)
    for name, first in zip(names, firsts, strict=True):
        if first is not None and first >= max_length:
            why = f"the supervised tokens {name}begin at token {first}, past data.max_length={max_length}"
            return LeftOut(row.where, why, longest if len(sides) > 1 else first + 1)
    none = next((name for name, first in zip(names, firsts, strict=True) if first is None), None)
    if none is None:  # the rendering has supervised tokens, so the objective decided
        others = [note for note in notes if note not in REASONS and note != CUT]
        nothing = "the objective finds nothing to train on in it"
        if len(sides) > 1 and CUT in notes:
            nothing = f"a prompt with its answer has {longest} tokens, more than data.max_length={max_length}"
            return LeftOut(row.where, "; ".join(others) or nothing, longest, by_objective=True)
        why = "; ".join(others or reasons) or nothing
        return LeftOut(row.where, why, None, by_objective=True)
    nothing = f"no supervised tokens {none}".strip() if none else "the objective finds nothing to train on in it"
    return LeftOut(row.where, "; ".join(reasons) or nothing, None)


def _encoded(row: PositionedRow, renderer: Renderer) -> list[Conversation]:
    """The conversation of a row as it was encoded, and that of its rejected answer if the objective encoded it too."""
    found = [t.conversation for t in renderer.turns]
    chosen = next((c for c in found if c.messages == row.conversation.messages), row.conversation)
    rejected = [c for c in found if row.conversation.rejected is not None and c.messages == row.conversation.rejected]
    return [chosen, *rejected[:1]]


def refuse_if_nothing_is_supervised(sides: Sequence[Side], rows: Rows) -> None:
    """Raises DataErrors, each with the reason of one row, if all of `rows` on a side were left out."""
    problems: list[SmolLM3Error] = []
    for name, count, left, row in sides:
        if not count or left or row is None:
            continue
        if problems and row.enough is None:  # held-out rows with the reason of the training rows, or a similar one
            continue
        one = "the first" if row.first else "one"
        if row.by_objective:
            several = f"the objective trains on none of the {count} {name} rows; {one} is"
            what = several if count > 1 else f"the objective does not train on the only {name} row:"
        else:
            several = f"none of the {count} {name} rows has supervised tokens; {one} is"
            what = several if count > 1 else f"the only {name} row has no supervised tokens:"
        hint = "--set data.held_out=0" if name == "held-out" else rows.preview()
        hint = f"--max-length {row.enough}" if row.enough is not None else hint
        problems.append(DataError(f"{what} {row.where}: {row.why}", hint=hint))
    raise_all(problems)
