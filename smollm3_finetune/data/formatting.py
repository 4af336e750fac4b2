"""Rows as conversations, through the formatter that recognizes them or the one that was named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from smollm3_finetune.api import Conversation, Formatter
from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.components.registry import RegisteredComponent, Registry, attributed_to
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.data.files import Row
from smollm3_finetune.errors import ConfigError, DataError

SHOWN = 3


def recognize(registry: Registry, first: Row) -> RegisteredComponent:
    """The formatter that claims the first row of a source.

    Raises DataError where none does, ConfigError where several do.
    """
    best = registry.claiming(FORMATTER, first.value)
    if len(best) > 1:
        names = " or ".join(f"--formatter {o.full_name}" for o in best)
        raise ConfigError(f"several formatters recognize the rows of {first.where}", hint=names)
    if not best:
        columns = ", ".join(map(repr, first.value)) or "none"
        known = "; ".join(f"{o.spec.name} ({o.spec.summary})" for o in registry.of(FORMATTER))
        raise DataError(f"{first.where}: no formatter recognizes a row with the columns {columns}", hint=known)
    return best[0]


def formatted(
    formatter: Formatter, rows: Iterable[Row], made_from: SelectedComponent | None = None
) -> Iterator[tuple[str, Conversation]]:
    """(where, conversation) of every row. Raises DataError, after the last row, that names the first wrong ones.

    Once a row was wrong nothing more is yielded. An exception that does not speak of the row is a fault of the
    formatter: a PluginError that names what it was `made_from`.
    """
    wrong: list[str] = []
    count = 0
    for row in rows:
        try:
            conversation = formatter(row.value)
            if not isinstance(conversation, Conversation):
                raise TypeError(f"the formatter returned a {type(conversation).__name__}, not a Conversation")
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            count += 1
            wrong += [f"{row.where}: {e}"] if count <= SHOWN else []
            continue
        except Exception:
            if made_from is None:
                raise
            with attributed_to(made_from.component, where=row.where):
                raise
        if not count:
            yield row.where, conversation
    if count:
        more = f"\n… and {count - SHOWN} more rows" if count > SHOWN else ""
        raise DataError("\n".join(wrong) + more, hint="mend the rows, or name another --formatter")
