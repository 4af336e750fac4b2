"""The measured values of a run, by name and step."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smollm3_finetune.files.limits import JSON_SIZE, shown_bytes
from smollm3_finetune.report.thinning import Points
from smollm3_finetune.report.values import count, number
from smollm3_finetune.runs.metrics import metric_rows

HELD_OUT = "held_out_loss"
NOT_CURVES = ("step", "epoch")
MOST_NAMES = 40
"""Names beyond these are not read: an objective may log its own values, but not one name for each step."""


@dataclass(frozen=True)
class Metrics:
    """Curves by name, such as `loss`, each in the order of the file."""

    curves: Mapping[str, Points] = field(default_factory=dict)
    lines: int = 0
    """Logged steps: lines with a training loss."""
    problem: str = ""
    """Why the file could not be read; empty if it could."""

    @property
    def last_step(self) -> int | None:
        return max((points[-1][0] for points in self.curves.values() if points), default=None)

    def of(self, name: str) -> Points:
        return self.curves.get(name, [])


def read_metrics(path: Path) -> Metrics:
    """The values in `metrics.jsonl`; damaged lines are skipped."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > JSON_SIZE.size:
            larger = f"{path.name} is larger than {shown_bytes(JSON_SIZE.size)} and is not shown"
            return Metrics(problem=f"{larger}; the limit is {JSON_SIZE.variable}.")
    curves: dict[str, Points] = {}
    lines = 0
    for row in metric_rows(path):
        if (step := count(row["step"])) is None:
            continue
        lines += "loss" in row
        for name, value in row.items():
            if name in NOT_CURVES or (name not in curves and len(curves) >= MOST_NAMES):
                continue
            finite = number(value)
            if finite is not None or value is None:  # None: it was not finite
                curves.setdefault(name, []).append((step, finite))
    return Metrics(curves, lines)
