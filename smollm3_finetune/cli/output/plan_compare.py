"""What `plan --compare` prints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from smollm3_finetune.data.counts import counted
from smollm3_finetune.files.room import shown_size

if TYPE_CHECKING:
    from smollm3_finetune.memory.compare import Candidate, Comparison, Left

ROWS = 40
"""The most rows that are printed."""
NAMES = 4
"""The most pairs that a reason names."""


def shown_comparison(found: Comparison, budget: int | None = None) -> str:
    """The table of ways to train, the smallest first, and the pairs that are not ranked, with the reason."""
    lines = [f"rows of {counted(found.length, 'token')}; the smallest first; * marks the run as it is configured", ""]
    rows = [_row(n, c, budget) for n, c in enumerate(found.ranked, start=1)]
    kept = [row for n, row in enumerate(rows) if n < ROWS or found.ranked[n].own]
    head = ("", "peak", "at most", "quantizer", "adapter", "checkpointing", "batch", *(("fits",) if budget else ()))
    widths = [max(len(row[i]) for row in (head, *kept)) for i in range(len(head))]
    for row in (head, *kept):
        texts = (
            text.rjust(w) if i in (0, 1, 2, 6) else text.ljust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(texts).rstrip())
    if len(kept) < len(rows):
        lines.append(f"{len(rows) - len(kept)} more: --json")
    for title, left in (
        ("memory unknown, not ranked", [c for c in found.left if c.unknown]),
        ("cannot be used", [c for c in found.left if not c.unknown]),
    ):
        if left:
            lines += ["", f"{title}:", *_reasons(left)]
    return "\n".join(lines)


def _row(number: int, one: Candidate, budget: int | None) -> tuple[str, ...]:
    memory = one.memory
    own = f"*{number}" if one.own else str(number)
    fits = () if budget is None else ("yes" if memory.high <= budget else "no",)
    checkpointing = "yes" if one.checkpointing else "no"
    sizes = (shown_size(memory.peak), shown_size(memory.high))
    return (own, *sizes, one.quantizer, one.adapter, checkpointing, str(one.batch), *fits)


def _reasons(left: list[Left]) -> list[str]:
    """A line for each reason, with the pairs that have it."""
    lines = []
    for reason, _ in Counter(c.reason for c in left).most_common():
        pairs = [f"{c.quantizer} + {c.adapter}" for c in left if c.reason == reason]
        more = f" and {len(pairs) - NAMES} more" if len(pairs) > NAMES else ""
        lines.append(f"  {', '.join(pairs[:NAMES])}{more}: {reason}")
    return lines
