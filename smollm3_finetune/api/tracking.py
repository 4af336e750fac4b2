"""Protocols for trackers: what receives the metrics of a run, beside the files in its directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run whose metrics are to be received."""

    name: str
    """The name of the run's directory."""
    directory: Path
    """The run's directory. A tracker may write files of its own into the folder `trackers/NAME` of it."""
    configuration: Mapping[str, Any]
    """The resolved configuration, as in `run.yaml`. Paths in it are those of this machine: do not publish them."""
    total_steps: int
    """The optimizer steps of the whole run."""
    first_step: int
    """The last step before this process began: 0 for a new run, the step of the checkpoint for a resumed one."""


class OpenTracker(Protocol):
    """Receives the metrics of one run, in its first process."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Called with the values of a step, under the keys of `metrics.jsonl`: `loss`, `learning_rate`, …

        A resumed run may repeat steps after its checkpoint. Must return soon: training waits for it.
        """
        ...

    def end(self, state: Literal["finished", "stopped", "failed"], report: Mapping[str, Any] | None) -> None:
        """Called once, last. `report` is the run's `report.json`, None unless the run finished."""
        ...


class Tracker(Protocol):
    """Receives the metrics of runs. `smollm3 train --tracker NAME` names it.

    Whatever it raises is shown in one line; the run then continues without it.
    """

    def open(self, run: TrackedRun) -> OpenTracker:
        """Begin to receive the metrics of a run; called after the run was planned, before the first step."""
        ...
