"""Selects the supervised messages: those of the assistant, except the ones that a row masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smollm3_finetune.builtin.formatters.turns import Turn

MAX_SHOWN = 3


def supervised(turns: Sequence[Turn], *, after: int = 0, learn_user: bool = False) -> tuple[int, ...] | None:
    """The indices of the supervised turns, or None if these are all assistant turns.

    Supervised are the assistant turns from index `after` on, except empty ones and those with weight 0; with
    `learn_user`, also user turns with weight 1. The result is empty if the row masks all its answers: such a row is
    counted as left out. Raises ValueError, with the reason for each turn, if there is no answer to train on.
    """
    chosen: list[int] = []
    empty_turns: list[str] = []
    masked = False
    for i, turn in enumerate(turns):
        if turn.role == "assistant" and i >= after:
            if turn.weight == 0:
                masked = True
            elif turn.empty:
                empty_turns.append(f"{turn.where} is empty")
            else:
                chosen.append(i)
        elif turn.role == "user" and learn_user and turn.weight == 1 and not turn.empty:
            chosen.append(i)
    if not chosen and not masked:
        more = [f"and {len(empty_turns) - MAX_SHOWN} more"] if len(empty_turns) > MAX_SHOWN else []
        why = f": {', '.join(empty_turns[:MAX_SHOWN] + more)}" if empty_turns else ""
        raise ValueError(f"there is no assistant message to train on{why}")
    return None if chosen == [i for i, t in enumerate(turns) if t.role == "assistant"] else tuple(chosen)
