"""The fields that an objective needs of every row, and the error for a source none of whose rows has one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smollm3_finetune.api import Conversation
from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import with_options
from smollm3_finetune.config.schema import DEFAULT_OBJECTIVE
from smollm3_finetune.config.yaml12 import one_line
from smollm3_finetune.errors import DataError

if TYPE_CHECKING:
    from smollm3_finetune.data.files import Row

WORDS = {"rejected": "rejected answer", "desirable": "label"}
"""The fields that an objective can need, in words."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the objective of a run needs of its rows."""

    fields: tuple[str, ...] = ()
    """Names of `Conversation` fields that must not be None."""
    objective: str = "the objective"

    def missing(self, conversation: Conversation) -> str:
        """Why a row is left out; empty if it has every field."""
        for name in self.fields:
            if getattr(conversation, name) is None:
                return conversation.lacks.get(name) or f"no {WORDS[name]}"
        return ""

    def error(self, first: Missing, rows: int, title: str, other_format: Callable[[str], str | None]) -> DataError:
        """The error if all `rows` of a source are left out; `other_format` names a formatter that finds a field."""
        name = next(n for n in self.fields if getattr(first.conversation, n) is None)
        of = "the only row" if rows == 1 else f"none of the {rows:,} rows"
        has = "has no" if rows == 1 else "has a"
        what = f"{of} of {title} {has} {WORDS[name]}, which {self.objective} needs"
        if name in first.conversation.lacks:
            what = f"{what}; {'it is' if rows == 1 else 'the first is'} {first.where}: {first.why}"
        other = other_format(name)
        hint = f"--formatter {other}" if other is not None else f"--objective {DEFAULT_OBJECTIVE.rpartition(':')[2]}"
        return DataError(what, hint=hint)


def shown(missing: Mapping[str, int]) -> str:
    """The rows that lack a field, with the reasons: `4 left out (the answers are equal: 3, an answer is empty: 1)`."""
    if len(missing) == 1:
        ((why, times),) = missing.items()
        return f"{times:,} left out ({one_line(why)})"
    ordered = sorted(missing.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{one_line(why)}: {times:,}" for why, times in ordered)
    return f"{sum(missing.values()):,} left out ({reasons})" if missing else ""


@dataclass(frozen=True)
class Missing:
    """The first row of a source that is left out, with its reason."""

    where: str
    conversation: Conversation
    why: str


def format_with(registry: Registry, row: Row, field: str, current: str) -> str | None:
    """The name of a formatter other than `current` that recognizes a row and finds `field` in it; None if none does."""
    for component in registry.of(FORMATTER):
        claims = getattr(component.spec, "claims", None)
        if claims is None or component.full_name == current:
            continue
        with contextlib.suppress(Exception):  # a formatter that fails on the row does not read it
            if claims(row.value) and getattr(with_options(component, {}).create()(row.value), field) is not None:
                return component.spec.name
    return None
