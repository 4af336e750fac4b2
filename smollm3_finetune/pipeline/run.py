"""Runs a pipeline: everything is checked, then each stage is kept, continued or run, and its state is written."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune import stopping
from smollm3_finetune.components.registry import Registry, once
from smollm3_finetune.errors import Collector, ConfigError, SmolLM3Error
from smollm3_finetune.model.device import free_memory
from smollm3_finetune.pipeline.check import Plan, check_stage
from smollm3_finetune.pipeline.configuration import Directories
from smollm3_finetune.pipeline.decide import Decision, decide, decide_all
from smollm3_finetune.pipeline.evaluating import accept_verdict, eval_stage, evaluation_figures
from smollm3_finetune.pipeline.exporting import export_stage, exporting_figures
from smollm3_finetune.pipeline.file import read_pipeline
from smollm3_finetune.pipeline.inputs import Inputs, Reading, inputs_of
from smollm3_finetune.pipeline.layout import PipelineDir
from smollm3_finetune.pipeline.merging import merge_stage, merging_figures
from smollm3_finetune.pipeline.naming import named_errors
from smollm3_finetune.pipeline.quantizing import quantize_stage, quantizing_figures
from smollm3_finetune.pipeline.results import is_complete, measured
from smollm3_finetune.pipeline.stage import PipelineFile, Stage
from smollm3_finetune.pipeline.state import Record, State, read_state, write_state
from smollm3_finetune.pipeline.training import train_stage, training_figures
from smollm3_finetune.pipeline.work import Work
from smollm3_finetune.train.distributed.processes import world_size

if TYPE_CHECKING:
    from smollm3_finetune.train.display import Display

FIGURES: Mapping[str, Callable[[Work], dict[str, Any]]] = {
    "train": training_figures, "merge": merging_figures, "quantize": quantizing_figures,
    "export": exporting_figures, "eval": evaluation_figures,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline whose file was read, ready to be checked and run."""

    file: PipelineFile
    place: PipelineDir
    reading: Reading
    warn: Callable[[str], None]

    @classmethod
    def open(cls, file: str | Path, reading: Reading, warn: Callable[[str], None]) -> Pipeline:
        """Read the file. Raises ConfigError or Problems with file and line."""
        read = read_pipeline(file)
        return cls(file=read, place=PipelineDir.of(read), reading=reading, warn=warn)

    def decisions(self, state: State, again: Collection[str] = (), *, tolerant: bool = False) -> list[Decision]:
        """What happens to each stage; if `tolerant`, the reason may be that its inputs cannot be read."""
        return decide_all(self.file, self.place, state, again, self.inputs, tolerant=tolerant)

    def command(self, verb: str) -> str:
        """The command that runs, resumes or shows this pipeline with the same plugins."""
        return self.reading.command(verb, self.file.path)

    def inputs(self, stage: Stage, results: Directories) -> Inputs:
        return inputs_of(self.file, stage, results, self.reading)

    def work(self, decision: Decision, results: Directories) -> Work:
        return Work(
            pipeline=self.file,
            stage=decision.stage,
            directory=decision.directory,
            results=results,
            reading=self.reading,
            warn=self.warn,
        )


def open_pipeline(
    file: str | Path,
    *,
    plugins: Sequence[str] = (),
    no_plugins: bool = False,
    find_plugins: Callable[[Sequence[str]], Registry],
    progress: Any,
    warn: Callable[[str], None],
) -> Pipeline:
    """Read the file of a pipeline. `find_plugins` is called once for each set of names."""
    reading = Reading(find_plugins=once(find_plugins), plugins=plugins, no_plugins=no_plugins, progress=progress)
    return Pipeline.open(file, reading, warn)


def check(pipeline: Pipeline, decisions: Sequence[Decision]) -> list[Plan]:
    """Check every stage that is not kept. Raises the problems of all stages together."""
    results = {d.stage.name: d.directory for d in decisions if d.action == "keep"}
    collect, plans = Collector(), []

    def checked(decision: Decision) -> Plan:
        with named_errors(pipeline.file, decision.stage):
            return check_stage(pipeline.work(decision, results), decision)

    for decision in decisions:
        plans.append(collect.run(lambda d=decision: checked(d)) or {})  # type: ignore[misc]
    collect.finish()
    return plans


def dry_run(
    pipeline: Pipeline, again: Collection[str] = (), *, must_exist: bool = False
) -> list[tuple[Decision, Plan]]:
    """Check everything; nothing is computed or written."""
    _check_command(pipeline, again, must_exist=must_exist)
    decisions = pipeline.decisions(read_state(pipeline.place), again)
    return list(zip(decisions, check(pipeline, decisions), strict=True))


def run_pipeline(pipeline: Pipeline, shown: Display, *, again: Collection[str] = (), must_exist: bool = False) -> State:
    """Bring a pipeline up to date; returns its state.

    With `must_exist`, a pipeline that was never begun is an error. Stages in `again` are run again, into new
    directories. Raises the problems of all stages before anything is run, and the errors of a stage.
    """
    _check_command(pipeline, again, must_exist=must_exist)
    place = pipeline.place
    with place.held():
        state = read_state(place)
        decisions = pipeline.decisions(state, again)
        check(pipeline, decisions)
        left = set(again)
        done: list[Decision] = []
        for stage in pipeline.file.stages:
            with named_errors(pipeline.file, stage):
                decision = decide(pipeline.file, place, state, stage, done, left, pipeline.inputs)
                state = _bring_up_to_date(pipeline, decision, done, state, shown)
            done.append(replace(decision, action="keep"))
    return state


def _bring_up_to_date(
    pipeline: Pipeline, decision: Decision, done: Sequence[Decision], state: State, shown: Display
) -> State:
    """Keep, continue or run a stage; those before it are done."""
    stage, say = decision.stage, pipeline.reading.progress.say
    work = pipeline.work(decision, {d.stage.name: d.directory for d in done})
    title = f"stage {len(done) + 1}/{len(pipeline.file.stages)} {stage.name}"
    if decision.action == "keep":
        say(f"{title}: {decision.reason}, {decision.directory}")
        if stage.kind == "eval":
            accept_verdict(work)
        return state
    what = "continued" if decision.action == "continue" else stage.kind
    say(f"{title}: {what} ({decision.reason}), {decision.directory}")
    state = _run_stage(pipeline, work, decision, state, shown)
    free_memory()
    return state


def _run_stage(pipeline: Pipeline, work: Work, decision: Decision, state: State, shown: Display) -> State:
    """Run or continue a stage, and write its state before and after."""
    stage, before = decision.stage, decision.record
    assert decision.inputs is not None
    former = () if before is None else before.former
    if before is not None and before.directory != decision.directory.name and decision.action == "run":
        former = (*former, before.directory)
    record = Record(
        kind=stage.kind,
        directory=decision.directory.name,
        inputs=decision.inputs,
        state="running",
        began=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        seconds=before.seconds if before is not None and decision.action == "continue" else 0.0,
        former=former,
    )

    def write(record: Record) -> State:
        found = state.with_record(stage.name, record)
        write_state(pipeline.place, pipeline.file, found)
        return found

    write(record)
    began = time.monotonic()
    with _recorded(pipeline, work, record, began, write):
        _carry_out(work, shown)
    with stopping.deferred():  # the stage is complete: it is recorded first
        finished = replace(
            record,
            state="finished",
            seconds=round(record.seconds + time.monotonic() - began, 1),
            figures=FIGURES[stage.kind](work),
            result=measured(stage.kind, work.directory),
        )
        state = write(finished)
    if stage.kind == "eval":
        accept_verdict(work)
    return state


def _carry_out(work: Work, shown: Display) -> None:
    """Do the work of a stage, unless it was killed after it was complete."""
    kind = work.stage.kind
    if not is_complete(kind, work.directory):
        if kind == "train":
            train_stage(work, shown)
        else:
            {"merge": merge_stage, "quantize": quantize_stage, "export": export_stage, "eval": eval_stage}[kind](work)
    stopping.check()


@contextlib.contextmanager
def _recorded(
    pipeline: Pipeline, work: Work, record: Record, began: float, write: Callable[[Record], State]
) -> Iterator[None]:
    """Write that a stage was interrupted or failed, and say how the pipeline is continued."""
    resume = pipeline.command("resume")
    name = work.stage.name

    def ended(**changes: Any) -> None:
        with contextlib.suppress(OSError, SmolLM3Error):  # what ended the stage is reported, not this
            write(replace(record, seconds=round(record.seconds + time.monotonic() - began, 1), **changes))

    try:
        yield
    except stopping.Stop as stop:
        stop.message = f"stage {name}: {stop.message}"
        stop.hint = f"to continue: {resume}"
        ended(state="interrupted")
        raise
    except KeyboardInterrupt:
        ended(state="interrupted")
        raise
    except Exception as e:
        stopped = stopping.delivered()
        if stopped is not None:  # a library made this error of a request to stop
            stopped.message, stopped.hint = f"stage {name}: {stopped.message}", f"to continue: {resume}"
        message = e.message if isinstance(e, SmolLM3Error) else f"{type(e).__name__}: {e}".splitlines()[0]
        ended(state="interrupted" if stopped is not None else "failed", error=None if stopped else message)
        if stopped is None:
            pipeline.reading.progress.say(f"stage {name} failed; after the fault is fixed: {resume}")
        raise


def _check_command(pipeline: Pipeline, again: Collection[str], *, must_exist: bool) -> None:
    """Raises ConfigError for a stage that does not exist, several processes, and a pipeline that must exist."""
    for name in again:
        pipeline.file.stage(name)
    if world_size() > 1:
        raise ConfigError(
            "a pipeline runs in one process", hint="run its train stages with torchrun and smollm3 train, one by one"
        )
    if must_exist and not pipeline.place.state.exists():
        raise ConfigError(
            f"there is nothing to resume: {pipeline.place.path} holds no pipeline",
            hint=pipeline.command("run"),
        )
