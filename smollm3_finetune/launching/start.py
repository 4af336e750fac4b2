"""Starts a planned run: in this process, or handed over to the processes that its launcher starts."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from smollm3_finetune import stopping
from smollm3_finetune.api import Launch, Launcher, Progress, Submitted, SubmittingLauncher
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.errors import ConfigError, SmolLM3Error
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import json_object, write_json
from smollm3_finetune.launching.ended import forget_ended, read_ended
from smollm3_finetune.launching.handover import Handover, launch_of
from smollm3_finetune.runs.failure import written
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.display import Display
from smollm3_finetune.train.setup import check
from smollm3_finetune.train.start import PlannedRun


def carry_out(
    planned: PlannedRun, display: Display, progress: Progress, began: float | None = None, **handed: Any
) -> dict[str, Any] | Submitted:
    """Train in this process or by the launcher of the run; returns the report, or what the launcher submitted.

    `handed` are more fields of `Handover`. Raises what ended the run, with a command that continues it.
    """
    if not planned.launches:
        from smollm3_finetune.model_files.imports import import_for_training

        import_for_training()
        return planned.train(display, began)
    launcher: Launcher = planned.plan.launcher.create()
    if isinstance(launcher, SubmittingLauncher):
        with attributed_to(planned.plan.launcher.component, "ready()"):
            launcher.ready(planned_launch(planned))
    launched, launch = hand_over(planned, display, **handed)
    return launched_report(launched, launcher, launch, progress)


def remember_memory(planned: PlannedRun, report: Mapping[str, Any]) -> None:
    """Add a run that this process has executed to those by which memory plans are corrected; see `remember`."""
    if not planned.launches:
        from smollm3_finetune.memory.predictor import remember

        remember(planned.plan, planned.registry, report)


def described(planned: PlannedRun) -> str:
    """What the launcher of a run would execute or submit."""
    launcher: Launcher = planned.plan.launcher.create()
    with attributed_to(planned.plan.launcher.component, "describe()"):
        return launcher.describe(planned_launch(planned))


def planned_launch(planned: PlannedRun) -> Launch:
    """The launch of a run that is not handed over yet, to describe it."""
    return launch_of(planned.run, planned.plan.model.context.device)


def hand_over(planned: PlannedRun, display: Display, **handed: Any) -> tuple[PlannedRun, Launch]:
    """Check what needs the tokens of the run, reserve its directory and write `launch.json`.

    Returns the run with its directory, and its launch. Raises ConfigError if another process trains in the directory.
    """
    run = planned.run
    check(planned.plan, run, display, planned.checkpoint)
    if planned.checkpoint is None:
        run = run.reserved()
    run.make()
    planned = replace(planned, run=run)
    with writing(run.launch), run.held():
        forget_ended(run)
        Handover.of(planned, **handed).write(run)
    return planned, planned_launch(planned)


def launched_report(
    planned: PlannedRun, launcher: Launcher, launch: Launch, progress: Progress
) -> dict[str, Any] | Submitted:
    """Start the processes of a run that was handed over, and wait for its end; see `carry_out`."""
    run, component = planned.run, planned.plan.launcher.component
    before = written(run.report)
    try:
        with attributed_to(component, "launch()"):
            submitted = launcher.launch(launch, progress)
    except stopping.Stop as stop:
        _explain_stop(run, stop)
        raise
    except SmolLM3Error as e:
        raise _failure(run, e) from e
    if submitted is not None:
        return submitted
    ended = read_ended(run)
    if ended and ended[0].kind == "stop":
        asked = stopping.Stop("", ended[0].exit_code)
        asked.message, asked.hint = ended[0].message, ended[0].hint
        forget_ended(run)
        raise asked
    if written(run.report) in (None, before):
        raise _failure(run, SmolLM3Error(f"{component.title} ended the run before its last step"))
    forget_ended(run)
    return json_object(run.report)


def resume_command(run: RunDir) -> str:
    return f"smollm3 train --resume {shlex.quote(str(run.path))}"


def _failure(run: RunDir, error: SmolLM3Error) -> SmolLM3Error:
    """The error of a process of the run, or that of its launcher, with a hint that continues the run.

    It is written to `error.json`; a run without a checkpoint is deleted, so that the same command can be repeated.
    """
    own = next((e for e in read_ended(run) if e.kind == "error"), None)
    saved = run.saved.all()
    if own is not None:
        failure = own.error()
        failure.hint = failure.hint or (f"to continue: {resume_command(run)}" if saved else error.hint)
    else:
        failure = type(error)(error.message, hint=error.hint) if type(error) is SmolLM3Error else error
    if own is None and saved:
        failure.message += f"; step {saved[-1].step} is saved in {saved[-1].path}"
        failure.args = (failure.message,)
        failure.hint = f"to continue: {resume_command(run)}"
    elif own is None and error.hint is None:
        failure.hint = "run the same command again"
    with _alone_in(run) as alone:
        if alone and not saved and not run.metrics.exists() and (not run.config.exists() or run.holds_nothing()):
            run.discard_launched()
        elif alone and run.config.exists() and not run.report.exists():
            with contextlib.suppress(OSError, ValueError):
                hint = {"hint": failure.hint} if failure.hint else {}
                write_json(run.error, {"message": failure.message, **hint})
        if alone:
            forget_ended(run)
    run.remove_empty()
    return failure


def _explain_stop(run: RunDir, stop: stopping.Stop) -> None:
    """Add to a request to stop what the processes of the run have saved."""
    found = next((e for e in read_ended(run) if e.kind == "stop" and ";" in e.message), None)
    saved = run.saved.all()
    if found is not None:
        stop.message += f";{found.message.partition(';')[2]}"
        stop.hint = found.hint
    elif saved:
        stop.message += f"; step {saved[-1].step} is saved in {saved[-1].path}"
        stop.hint = f"to continue: {resume_command(run)}"
    else:
        stop.message += " before the first step was saved"
        stop.hint = "run the same command again"
        with _alone_in(run) as alone:
            if alone and not run.config.exists():
                run.discard_launched()
        run.remove_empty()
    forget_ended(run)


@contextlib.contextmanager
def _alone_in(run: RunDir) -> Iterator[bool]:
    """Whether no process trains in the directory; it is held inside the context."""
    with contextlib.ExitStack() as stack:
        alone = run.path.is_dir()
        try:
            if alone:
                stack.enter_context(run.held())
        except (ConfigError, OSError):
            alone = False
        yield alone
