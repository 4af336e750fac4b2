"""The status of a pipeline: each stage with its state, figures, and what `resume` would do. Nothing is written."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.pipeline.decide import Decision
from smollm3_finetune.pipeline.run import Pipeline
from smollm3_finetune.pipeline.state import Record, read_state
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.summary import RunSummary


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    decision: Decision
    state: str
    """`new`, `running`, `interrupted`, `failed`, `finished`, or `outdated`: finished, but to be run again."""
    directory: str | None
    """Where its last result is; None if it was never begun."""
    record: Record | None
    steps: int | None = None
    """Optimizer steps of a train stage that was begun."""

    @property
    def next(self) -> str:
        """What `run` and `resume` do: `keep`, `continue: from step 40`, `run: rows changed`."""
        action, reason = self.decision.action, self.decision.reason
        return action if action == "keep" else f"{action}: {reason}"

    def as_dict(self) -> dict[str, Any]:
        record, stage = self.record, self.decision.stage
        figures = {} if record is None else record.figures
        return {
            "stage": stage.name,
            "kind": stage.kind,
            "state": self.state,
            "directory": self.directory,
            "began": None if record is None else record.began,
            "seconds": None if record is None else record.seconds,
            "steps": self.steps,
            "before": figures.get("before"),
            "after": figures.get("after"),
            "verdict": figures.get("verdict"),
            "error": None if record is None else record.error,
            "former": [] if record is None else list(record.former),
            "next": self.decision.action,
            "reason": self.decision.reason,
        }


def status_of(pipeline: Pipeline, again: Collection[str] = ()) -> list[StageStatus]:
    """The status of each stage."""
    running = pipeline.place.is_running()
    decisions = pipeline.decisions(read_state(pipeline.place), again, tolerant=True)
    return [_status(pipeline, decision, running=running) for decision in decisions]


def as_dict(pipeline: Pipeline, stages: Collection[StageStatus]) -> dict[str, Any]:
    """What `pipeline status --json` prints."""
    return {
        "name": pipeline.file.name,
        "file": str(pipeline.file.path),
        "directory": str(pipeline.place.path),
        "running": pipeline.place.is_running(),
        "stages": [stage.as_dict() for stage in stages],
    }


def _status(pipeline: Pipeline, decision: Decision, *, running: bool) -> StageStatus:
    record = read_state(pipeline.place).records.get(decision.stage.name)
    if record is None:
        return StageStatus(decision=decision, state="new", directory=None, record=None)
    directory = pipeline.place.path / record.directory
    state: str = record.state
    if state == "running" and not running:  # the process was killed
        state = "interrupted"
    if state == "finished" and decision.action == "run":
        state = "outdated"
    steps = None
    if decision.stage.kind == "train" and directory.is_dir():
        steps = RunSummary.of(RunDir(directory)).steps
    return StageStatus(decision=decision, state=state, directory=str(directory), record=record, steps=steps)
