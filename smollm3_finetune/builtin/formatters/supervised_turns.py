"""Which messages are learned from: the assistant's, less those that a row masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smollm3_finetune.builtin.formatters.turns import Turn

SHOWN = 3


def supervised(turns: Sequence[Turn], *, after: int = 0, learn_user: bool = False) -> tuple[int, ...] | None:
    """The indices of the turns to learn from, or None where these are all of the assistant's.

    The assistant's turns from index `after` on, but not those of weight 0 nor empty ones; with `learn_user`, also
    user turns of weight 1. Nothing at all where the row itself masks its answers: such a row is counted as one that
    teaches nothing. Raises ValueError, with each turn's reason, where there is no answer to begin with.
    """
    chosen: list[int] = []
    passed: list[str] = []
    masked = False
    for i, turn in enumerate(turns):
        if turn.role == "assistant" and i >= after:
            if turn.weight == 0:
                masked = True
            elif turn.empty:
                passed.append(f"{turn.where} is empty")
            else:
                chosen.append(i)
        elif turn.role == "user" and learn_user and turn.weight == 1 and not turn.empty:
            chosen.append(i)
    if not chosen and not masked:
        more = [f"and {len(passed) - SHOWN} more"] if len(passed) > SHOWN else []
        why = f": {', '.join(passed[:SHOWN] + more)}" if passed else ""
        raise ValueError(f"there is no assistant message to learn from{why}")
    return None if chosen == [i for i, t in enumerate(turns) if t.role == "assistant"] else tuple(chosen)
