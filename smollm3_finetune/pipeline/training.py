"""The work of a train stage: a run in its directory, continued from its newest checkpoint if there is one."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import Submitted
from smollm3_finetune.errors import IncompatibleError, ModelError
from smollm3_finetune.launching.start import carry_out
from smollm3_finetune.pipeline.configuration import layers
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


def planned_run(work: Work, run: RunDir) -> PlannedRun:
    """A new run, or the rest of the one that was begun in the directory."""
    begun = run.config.exists() and not run.holds_nothing()
    below = layers(work.pipeline, work.stage, work.results)
    common: dict[str, Any] = {
        "plugins": work.reading.plugins,
        "find_plugins": work.reading.find_plugins,
        "progress": work.progress,
        "warn": work.warn,
    }
    if not begun:
        output = [_output(work)]
        return plan_training(output, below=below, pipeline=work.about, **common)
    loaded = work.loaded()
    trusted = {("loader", name) for name in CODE_EXECUTION_OPTIONS}
    kept = [s for s in loaded.settings if s.key in trusted or may_change(s.key)]
    common["plugins"] = [p for p in work.plugins() if not p.startswith("no:")]
    try:
        return plan_training(kept, resume=run.path, pipeline=work.about, **common)
    except ModelError as e:
        if "start" not in (e.hint or ""):
            raise
        again = f"{work.reading.command('run', work.pipeline.path)} --again {work.stage.name}"
        raise ModelError(e.message, hint=f"to run the stage again, in a new directory: {again}") from e


def _output(work: Work) -> Any:
    from smollm3_finetune.config.load import Setting

    return Setting(key=("output",), value=str(work.directory), origin=work.stage.origin)


def training_figures(work: Work) -> dict[str, Any]:
    """The held-out losses and the verdict of a finished run."""
    summary = RunSummary.of(RunDir(work.directory))
    return {"before": summary.before, "after": summary.after, "verdict": summary.verdict, "steps": summary.steps}
