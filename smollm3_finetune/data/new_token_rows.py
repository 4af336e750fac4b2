"""How many training rows hold each new token: one that no row holds is only made less likely.

Its row of a head that is not frozen, or that is tied to the embeddings, moves with the softmax of every position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from smollm3_finetune.data.counts import counted
from smollm3_finetune.model.new_tokens import KEY, SHOWN, NewToken, named


def no_rows_yet(tokens: Sequence[NewToken]) -> Counter[str]:
    """The counts before any row: 0 for each token."""
    return Counter({token.text: 0 for token in tokens})


def add_row(counts: Counter[str], tokens: Sequence[NewToken], sequences: Iterable[Sequence[int]]) -> None:
    """Count a training row, whose examples have these token ids."""
    held = {i for ids in sequences for i in ids} if tokens else set()
    counts.update(token.text for token in tokens if token.id in held)


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The counts over all sources."""
    found: Counter[str] = Counter()
    for one in counts:
        found.update(one)
    return dict(found)


def rows_line(counts: Mapping[str, int]) -> str:
    """The first tokens, each with the number of training rows that hold it."""
    shown = ", ".join(f"{text!r} ({counted(rows, 'row')})" for text, rows in list(counts.items())[:SHOWN])
    more = len(counts) - SHOWN
    return shown + (f" and {more:,} more" if more > 0 else "")


def unused_line(counts: Mapping[str, int]) -> str | None:
    """What is said about the tokens that no training row holds; None if there are none."""
    unused = [text for text, rows in counts.items() if not rows]
    if not unused:
        return None
    it = "it" if len(unused) == 1 else "them"
    return (
        f"no training row has {named(unused)}, so the model learns only not to predict {it}: add rows, or leave {it} "
        f"out of {KEY}"
    )
