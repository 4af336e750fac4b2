"""The prediction for a run as one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smollm3_finetune.files.room import shown_size

if TYPE_CHECKING:
    from smollm3_finetune.memory.memory_plan import MemoryPlan


def memory_line(found: MemoryPlan) -> str:
    """`memory: 2.4 GB (1.5 GB to 2.8 GB) for batches of 2 rows of 512 tokens`, or why it is unknown."""
    if not found.known:
        return f"memory: unknown, because {found.unknown[0]}"
    each = " on each device" if found.processes > 1 else ""
    between = f"{shown_size(found.low)} to {shown_size(found.high)}"
    rows = f"{found.batch} row{'s' * (found.batch != 1)} of {found.length} tokens"
    checked = "" if found.compared else "; never compared with a measurement"
    return f"memory: {shown_size(found.peak)}{each} ({between}) for batches of {rows}{checked}"
