"""What `smollm3 plan` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smollm3_finetune.cli.output.plan_compare import shown_comparison
from smollm3_finetune.cli.output.plan_fit import shown_fit
from smollm3_finetune.cli.output.plan_probe import shown_probe
from smollm3_finetune.files.room import shown_size

if TYPE_CHECKING:
    from smollm3_finetune.memory.answer import Answer
    from smollm3_finetune.memory.memory_plan import MemoryPlan


def as_object(found: Answer) -> dict[str, Any]:
    """For `--json`."""
    about: dict[str, Any] = {"memory": {**found.memory.as_json(), "correction": found.correction.as_json()}}
    if found.fit is not None:
        about["fit"] = found.fit.as_json()
    if found.comparison is not None:
        about["comparison"] = found.comparison.as_json()
    if found.probe is not None:
        predicted = None if found.probe_predicted is None else found.probe_predicted.peak
        about["probe"] = {**found.probe.as_json(), "predicted_peak": predicted}
    return about


def shown_answer(found: Answer) -> str:
    """The prediction, and what else was asked, as text."""
    blocks = [shown_memory(found.memory)]
    if (line := found.correction.line(found.uncorrected)) is not None:
        blocks[0] += f"\n{line}"
    if found.fit is not None:
        blocks.append(shown_fit(found.fit))
    if found.comparison is not None:
        blocks.append(shown_comparison(found.comparison, found.budget))
    if found.probe is not None:
        blocks.append(shown_probe(found.probe, found.probe_predicted))
    return "\n\n".join(blocks)


def shown_memory(plan: MemoryPlan) -> str:
    """The parts of a prediction, and its interval."""
    if plan.unknown:
        return "the memory is unknown:\n" + "\n".join(f"  {reason}" for reason in plan.unknown)
    parts = [f"{name:<14}{'-' * (size < 0)}{shown_size(abs(size))}" for name, size in plan.parts.items() if size]
    return "\n".join(
        [
            *parts,
            f"{'peak':<14}{shown_size(plan.peak)} ({shown_size(plan.low)} to {shown_size(plan.high)})",
            *(f"note: {note}" for note in plan.notes),
        ]
    )
