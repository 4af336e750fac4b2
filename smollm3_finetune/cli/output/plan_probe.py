"""What `plan --probe` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smollm3_finetune.data.counts import counted
from smollm3_finetune.files.room import shown_size
from smollm3_finetune.train.display import duration

if TYPE_CHECKING:
    from smollm3_finetune.memory.memory_plan import MemoryPlan
    from smollm3_finetune.memory.probe import Probe


def shown_probe(found: Probe, predicted: MemoryPlan | None) -> str:
    """The time of a step, the duration of the run, and the memory; `predicted` is for the largest batch measured."""
    middle, low, high = found.duration
    each = sorted(s.seconds for s in found.steps)
    lines = [
        f"a step         {found.step_seconds:.3g} s (from {each[0]:.3g} to {each[-1]:.3g} s in "
        f"{counted(len(each), 'step')})" + (f", {found.tokens_per_second:.0f} tokens/s" if found.counts_tokens else ""),
        f"the run        {counted(found.total_steps, 'step')}: {duration(middle)} (95 % interval {duration(low)} to "
        f"{duration(high)}), and {duration(found.loading)} before the first step; measuring held-out rows is not "
        "included",
    ]
    peak, tokens = found.memory.get("peak"), int(found.memory.get("batch_tokens") or 0)
    if peak is None:
        lines.append("memory         cannot be measured on this system")
    elif predicted is None:
        lines.append(f"memory         {shown_size(peak)} measured, with batches of at most {counted(tokens, 'token')}")
    else:
        error = predicted.peak / peak - 1
        lines.append(
            f"memory         {shown_size(peak)} measured, {shown_size(predicted.peak)} predicted ({error:+.1%}), "
            f"with batches of at most {counted(tokens, 'token')}"
        )
    return "\n".join(lines)
