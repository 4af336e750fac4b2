"""Corrects a prediction by what finished runs on this machine took."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.data.counts import counted
from smollm3_finetune.files.room import shown_size

if TYPE_CHECKING:
    from smollm3_finetune.memory.memory_plan import MemoryPlan
    from smollm3_finetune.memory.records import MemoryRecord

SMALLEST = 250e6
"""Bytes. Smaller runs correct no others: buffers of libraries are a large part of them."""
NEAR = 4.0
"""Runs correct predictions of at most this many times their size, and as many times less."""
SEVERAL = 5
"""Fewer runs do not lower the upper end of an interval: they may be unlike the run that is predicted."""
PART = "correction"
"""The part of the corrected prediction that no other part explains."""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What runs say about a prediction."""

    runs: int = 0
    """Runs of similar size."""
    factor: float = 1.0
    """The median of measured to predicted."""
    highest: float = 1.0
    """The highest of measured to predicted."""
    measured: int = 0
    """The most that a run with the same settings and at most as many tokens took."""
    same: int = 0
    """The number of those runs."""

    def applied(self, plan: MemoryPlan) -> MemoryPlan:
        """The corrected prediction. It is never below what a run with the same settings took."""
        if plan.unknown or not (self.runs or self.same):
            return plan
        peak = max(round(plan.peak * self.factor), self.measured)
        widest = self.factor if self.runs >= SEVERAL else max(self.factor, 1.0)
        high = max(round(plan.high * widest), round(plan.peak * self.highest), peak)
        low = max(min(round(plan.low * self.factor), peak), min(self.measured, peak))
        parts = {**plan.parts, PART: peak - plan.peak} if peak != plan.peak else plan.parts
        return replace(plan, parts=parts, low=low, high=high)

    def line(self, plan: MemoryPlan) -> str | None:
        """What it did to the prediction, as a sentence; None if there is nothing to correct by."""
        if plan.unknown or not (self.runs or self.same):
            return None
        corrected = self.applied(plan).peak
        changed = corrected / plan.peak - 1
        by = "not changed" if corrected == plan.peak else f"corrected by {changed:+.1%}"
        if self.same and corrected == self.measured > round(plan.peak * self.factor):
            count = counted(self.same, "finished run")
            return f"{by}: {count} with these settings took up to {shown_size(self.measured)} on this machine"
        return f"{by} by the measured memory of {counted(self.runs or self.same, 'finished run')} on this machine"

    def as_json(self) -> dict[str, Any]:
        return {"runs": self.runs, "factor": round(self.factor, 4), "same_settings": self.same,
                "measured": self.measured or None}  # fmt: skip


def correction_for(records: Sequence[MemoryRecord], plan: MemoryPlan, *, key: str, tokens: int) -> Correction:
    """The correction of a prediction for a batch of `tokens`, in a run with this `key`.

    `records` are those of this machine and this kind of device.
    """
    if plan.unknown:
        return Correction()
    near = [r for r in records if r.predicted >= SMALLEST and 1 / NEAR <= r.predicted / plan.peak <= NEAR]
    ratios = [r.measured / r.predicted for r in near]
    same = [r.measured for r in records if r.key == key and r.tokens <= tokens]
    return Correction(
        runs=len(near),
        factor=statistics.median(ratios) if ratios else 1.0,
        highest=max(ratios, default=1.0),
        measured=max(same, default=0),
        same=len(same),
    )
