"""Rows as conversations, converted by the named formatter or by the one that recognizes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from smollm3_finetune.api import Conversation, Formatter
from smollm3_finetune.components.contract import described
from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.components.registry import RegisteredComponent, Registry, attributed_to, explain_choice
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.data.columns import UnreadColumns
from smollm3_finetune.data.files import Row
from smollm3_finetune.errors import ConfigError, DataError, PluginError
from smollm3_finetune.files.json import json_type

MAX_SHOWN = 3


def recognize(registry: Registry, first: Row) -> RegisteredComponent:
    """The formatter that claims the first row of a source.

    Raises DataError if none does, ConfigError if several do.
    """
    best = registry.claiming(FORMATTER, first.value, f"the row {first.where}")
    if len(best) > 1:
        names = " or ".join(f"--formatter {o.full_name}" for o in best)
        raise ConfigError(f"several formatters recognize the rows of {first.where}", hint=names)
    if not best:
        columns = ", ".join(f"{name!r} ({json_type(value)})" for name, value in first.value.items()) or "none"
        known = "supported formats: " + "; ".join(f"{o.spec.name} ({o.spec.summary})" for o in registry.of(FORMATTER))
        word = "columns" if len(first.value) != 1 else "column"
        raise DataError(f"{first.where}: no formatter recognizes a row with the {word} {columns}", hint=known)
    return best[0]


def formatted(
    formatter: Formatter,
    rows: Iterable[Row],
    component: SelectedComponent | None = None,
    unread: UnreadColumns | None = None,
    recognized: bool = False,
) -> Iterator[tuple[str, Conversation]]:
    """Yields (where, conversation) of every row, and counts its columns that are not read in `unread`.

    `recognized`: the formatter was not named, so another one is not the remedy of an invalid row.

    Raises DataError that names the first invalid rows, after the last row is read; nothing is yielded after an invalid
    row. An exception that is not about the row is a bug in the formatter: PluginError that names its `component`.
    """
    wrong: list[str] = []
    hint = None
    count = 0
    for row in rows:
        try:
            conversation = formatter(row.value)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            count += 1
            wrong += (
                [f"{row.where}: {'KeyError: ' if isinstance(e, KeyError) else ''}{e}"] if count <= MAX_SHOWN else []
            )
            hint = hint or getattr(e, "hint", None)
            continue
        except (Exception, SystemExit):
            if component is None:
                raise
            with attributed_to(component.component, where=row.where):
                raise
        if not isinstance(conversation, Conversation):
            raise _wrong_type(conversation, row, component)
        if unread is not None:
            unread.observe(row.value, conversation)
        if not count:
            yield row.where, conversation
    if count:
        more = f"\n… and {count - MAX_SHOWN} more rows" if count > MAX_SHOWN else ""
        named = "fix the rows, or omit the name of the formatter: the format is then detected"
        hint = hint or ("fix the rows" if recognized else named)
        error = DataError("\n".join(wrong) + more, hint=hint)
        if component is not None:
            explain_choice(component.component, error)
        raise error


def _wrong_type(found: object, row: Row, component: SelectedComponent | None) -> PluginError:
    """The error of a formatter that returns something other than a conversation."""
    who = component.component.who if component is not None else "the formatter"
    error = PluginError(f"{row.where}: {who} returned {described(found)}, not a Conversation",
                        hint="return Conversation(messages=(…))")  # fmt: skip
    if component is not None:
        explain_choice(component.component, error)
    return error
