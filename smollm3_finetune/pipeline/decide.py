"""Which stages are kept, continued or run: a finished stage whose inputs are unchanged is not run again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smollm3_finetune.errors import Collector, Problems, SmolLM3Error
from smollm3_finetune.pipeline.configuration import Directories
from smollm3_finetune.pipeline.inputs import Inputs
from smollm3_finetune.pipeline.layout import PipelineDir
from smollm3_finetune.pipeline.naming import name_stage
from smollm3_finetune.pipeline.results import difference, is_complete
from smollm3_finetune.pipeline.stage import PipelineFile, Stage
from smollm3_finetune.pipeline.state import Record, State
from smollm3_finetune.runs.rundir import RunDir

Action = Literal["keep", "continue", "run"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to a stage, and why."""

    stage: Stage
    action: Action
    reason: str
    """A few words: `unchanged`, `the rows changed`, `from step 40`, …"""
    directory: Path
    """Where its result is or will be."""
    inputs: Inputs | None = None
    """None if they depend on a stage that is not finished."""
    record: Record | None = None


def decide_all(
    pipeline: PipelineFile,
    place: PipelineDir,
    state: State,
    again: Collection[str],
    inputs: Callable[[Stage, Directories], Inputs],
    *,
    tolerant: bool = False,
) -> list[Decision]:
    """What happens to each stage, as far as it is known before any of them is run.

    Raises the problems of reading the inputs of all stages together, or with `tolerant` makes them the reason.
    """
    decisions: list[Decision] = []
    collect = Collector()
    for stage in pipeline.stages:
        try:
            decisions.append(decide(pipeline, place, state, stage, decisions, again, inputs))
        except SmolLM3Error as e:
            problems = e.problems if isinstance(e, Problems) else (e,)
            reason = f"it cannot be run: {problems[0].message}"
            collect.problems += problems
            for problem in problems:
                name_stage(problem, pipeline, stage)
            record = state.records.get(stage.name)
            directory = place.path / (stage.name if record is None else record.directory)
            decisions.append(Decision(stage=stage, action="run", reason=reason, directory=directory, record=record))
    if not tolerant:
        collect.finish()
    return decisions


def decide(
    pipeline: PipelineFile,
    place: PipelineDir,
    state: State,
    stage: Stage,
    earlier: Sequence[Decision],
    again: Collection[str],
    inputs: Callable[[Stage, Directories], Inputs],
) -> Decision:
    """What happens to a stage after those decided `earlier`."""
    record = state.records.get(stage.name)
    unfinished = {d.stage.name for d in earlier if d.action != "keep"}
    pending = [name for name in stage.stages() if name in unfinished]
    others = {s.name for s in pipeline.stages} - {stage.name}
    fresh = place.path / place.vacant(stage.name, others)

    def runs(reason: str, found: Inputs | None = None) -> Decision:
        return Decision(stage=stage, action="run", reason=reason, directory=fresh, inputs=found, record=record)

    if pending:
        return runs(f"after {', '.join(pending)}")
    found = inputs(stage, {d.stage.name: d.directory for d in earlier})
    if record is None:
        return runs("new", found)
    if stage.name in again:
        return runs("asked for", found)
    if reason := _changed(stage, record, found):
        return runs(reason, found)
    directory = place.path / record.directory
    if record.state == "finished":
        if wrong := difference(directory, record.result):
            return runs(wrong, found)
        return Decision(
            stage=stage, action="keep", reason="unchanged", directory=directory, inputs=found, record=record
        )
    reason = _reached(stage, directory)
    return Decision(stage=stage, action="continue", reason=reason, directory=directory, inputs=found, record=record)


def _changed(stage: Stage, record: Record, inputs: Inputs) -> str | None:
    """Which input has changed since the stage was begun; None if none has."""
    if record.kind != stage.kind:
        return f"it was a {record.kind} stage"
    for name in sorted({*record.inputs, *inputs}):
        if record.inputs.get(name) != inputs.get(name):
            if ref := {"from": stage.start, "against": stage.against, "model": stage.model}.get(name):
                return f"{ref.title} changed"
            return f"{name} changed"
    return None


def _reached(stage: Stage, directory: Path) -> str:
    """From where a stage that was begun is continued."""
    if is_complete(stage.kind, directory):
        return "complete, but not recorded"
    if stage.kind == "train":
        run = RunDir(directory)
        if run.trained.exists():
            return "from the last step"
        if saved := run.saved.all():
            return f"from step {saved[-1].step}"
    return "from its start"
