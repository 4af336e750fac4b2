"""Starts the run of a trial, as a child process or by the launcher of its configuration, and says what became of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from smollm3_finetune import stopping
from smollm3_finetune.api import Launch, Launcher, Progress, Submitted, run_processes
from smollm3_finetune.errors import Problems, SmolLM3Error, first_line
from smollm3_finetune.launching.start import hand_over, launched_report
from smollm3_finetune.pipeline.state import Progress as State
from smollm3_finetune.train.display import Display
from smollm3_finetune.train.start import PlannedRun


class ChildProcess:
    """The launcher of trials whose run has none: each is one process, whose memory is free again when it ends."""

    def describe(self, launch: Launch) -> str:
        return shlex.join(launch.command)

    def launch(self, launch: Launch, progress: Progress) -> None:
        run_processes(launch.command, launch, progress)


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    state: State
    error: str | None = None
    note: str | None = None
    """What a launcher submitted."""


def start_trial(planned: PlannedRun, shown: Display, progress: Progress, *, no_plugins: bool) -> Outcome:
    """Run a trial and wait for its end. Errors become its outcome; a request to stop is raised."""
    try:
        launcher: Launcher = planned.plan.launcher.create() if planned.launches else ChildProcess()
        planned, launch = hand_over(planned, shown, no_plugins=no_plugins)
        found = launched_report(planned, launcher, launch, progress)
    except Exception as e:
        return failed(e)
    if isinstance(found, Submitted):
        return Outcome("submitted", note=found.says)
    return Outcome("finished")


def failed(error: Exception) -> Outcome:
    """The outcome of an error. Raises the request to stop of which a library made the error."""
    if (stopped := stopping.delivered()) is not None:
        raise stopped from error
    if isinstance(error, Problems):
        error = error.problems[0]
    if isinstance(error, SmolLM3Error):
        return Outcome("failed", error=error.message)
    return Outcome("failed", error=f"unexpected {type(error).__name__}: {first_line(error)}")
