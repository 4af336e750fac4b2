"""The work of a train stage: a run in its directory, continued from its newest checkpoint if there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smollm3_finetune.api import Submitted
from smollm3_finetune.config.load import Setting, assemble
from smollm3_finetune.errors import IncompatibleError, ModelError
from smollm3_finetune.launching.start import carry_out, remember_memory
from smollm3_finetune.pipeline.configuration import layers
from smollm3_finetune.pipeline.inputs import Reading
from smollm3_finetune.pipeline.work import Work
from smollm3_finetune.runs.reopen import CODE_EXECUTION_OPTIONS
from smollm3_finetune.runs.resume import may_change
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.summary import RunSummary
from smollm3_finetune.train import display
from smollm3_finetune.train.start import PlannedRun, plan_training


def train_stage(work: Work, shown: display.Display) -> None:
    """Train the run of a stage, or the rest of it."""
    planned = planned_run(work, RunDir(work.directory))
    done = carry_out(planned, shown, work.progress, no_plugins=work.reading.no_plugins)
    if isinstance(done, Submitted):
        raise IncompatibleError(
            f"{planned.plan.launcher.component.title} submits a job, but a stage must wait for the end of its run",
            hint="run the whole pipeline in a job, or use another launcher for this stage",
        )
    remember_memory(planned, done)


def planned_run(work: Work, run: RunDir) -> PlannedRun:
    """The run of a stage, or the rest of it."""
    try:
        return planned_in(
            run,
            layers(work.pipeline, work.stage, work.results),
            origin=work.stage.origin,
            part_of=work.about,
            reading=work.reading,
            warn=work.warn,
        )
    except ModelError as e:
        if "start" not in (e.hint or "") or not _is_begun(run):
            raise
        again = f"{work.reading.command('run', work.pipeline.path)} --again {work.stage.name}"
        raise ModelError(e.message, hint=f"to run the stage again, in a new directory: {again}") from e


def planned_in(
    run: RunDir,
    below: Sequence[Sequence[Setting]],
    *,
    origin: str,
    part_of: Mapping[str, str],
    reading: Reading,
    warn: Callable[[str], None],
) -> PlannedRun:
    """A new run with the settings of these layers, or the rest of the one that was begun in the directory."""
    common: dict[str, Any] = {"find_plugins": reading.find_plugins, "progress": reading.progress, "warn": warn}
    if not _is_begun(run):
        output = Setting(key=("output",), value=str(run.path), origin=origin)
        return plan_training([output], below=below, part_of=part_of, plugins=reading.plugins, **common)
    loaded = assemble(below)
    trusted = {("loader", name) for name in CODE_EXECUTION_OPTIONS}
    kept = [s for s in loaded.settings if s.key in trusted or may_change(s.key)]
    plugins = [p for p in (*loaded.config.plugins, *reading.plugins) if not p.startswith("no:")]
    return plan_training(kept, resume=run.path, part_of=part_of, plugins=plugins, **common)


def _is_begun(run: RunDir) -> bool:
    return run.config.exists() and not run.holds_nothing()


def training_figures(work: Work) -> dict[str, Any]:
    """The held-out losses and the verdict of a finished run."""
    summary = RunSummary.of(RunDir(work.directory))
    return {"before": summary.before, "after": summary.after, "verdict": summary.verdict, "steps": summary.steps}
