"""Rows as conversations, through the formatter that recognises them or the one that was named."""

from __future__ import annotations

from collections.abc import Sequence

from smollm3_finetune.api import Conversation
from smollm3_finetune.data.reading import Row
from smollm3_finetune.errors import ConfigError, DataError
from smollm3_finetune.kinds import FORMATTER
from smollm3_finetune.registry import Offer, Registry

SHOWN = 3


def recognise(registry: Registry, rows: Sequence[Row]) -> Offer:
    """The formatter that claims the first row. Raises DataError where none does, ConfigError where several do."""
    first = rows[0]
    best = registry.claiming(FORMATTER, first.value)
    if len(best) > 1:
        names = " or ".join(f"--formatter {o.full_name}" for o in best)
        raise ConfigError(f"several formatters recognise the rows of {first.where}", hint=names)
    if not best:
        columns = ", ".join(map(repr, first.value)) or "none"
        known = "; ".join(f"{o.spec.name} ({o.spec.summary})" for o in registry.of(FORMATTER))
        raise DataError(f"{first.where}: no formatter recognises a row with the columns {columns}", hint=known)
    return best[0]


def format_rows(formatter: object, rows: Sequence[Row]) -> list[Conversation]:
    """Every row as a conversation. Raises DataError that names the first wrong rows by file and line."""
    conversations: list[Conversation] = []
    wrong: list[str] = []
    for row in rows:
        try:
            conversation = formatter(row.value)  # type: ignore[operator]
            if not isinstance(conversation, Conversation):
                raise TypeError(f"the formatter returned a {type(conversation).__name__}, not a Conversation")
            conversations.append(conversation)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            wrong.append(f"{row.where}: {e}")
    if wrong:
        more = f"\n… and {len(wrong) - SHOWN} more rows" if len(wrong) > SHOWN else ""
        raise DataError("\n".join(wrong[:SHOWN]) + more, hint="mend the rows, or name another --formatter")
    return conversations
