"""Passes what happens in a run to its tracker, from the plan to the report."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from smollm3_finetune.api import TrackedRun
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.load import as_dict
from smollm3_finetune.errors import PluginError
from smollm3_finetune.train.containment import Contained
from smollm3_finetune.train.finite import finite
from smollm3_finetune.train.setup import Job

METHODS = ("log", "end")
"""The methods of what `open` returns."""


@dataclass
class TrackedJob:
    """A run and the tracker that receives it."""

    calls: Contained
    opened: Any = None
    """None if the tracker could not be opened."""
    report: Mapping[str, Any] | None = None
    """The report of the finished run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass the values of a step on; those that are not finite are left out."""
        known = {name: float(value) for name, value in values.items() if finite(value)}
        if self.opened is not None and known:
            self.calls.call(lambda: self.opened.log(step, known))

    def end(self, state: Literal["finished", "stopped", "failed"]) -> None:
        """End the tracker's run, also that of a tracker that failed."""
        opened, self.opened = self.opened, None
        if opened is not None:
            report = copy.deepcopy(self.report) if state == "finished" else None
            self.calls.attempt(lambda: opened.end(state, report))


@contextlib.contextmanager
def tracked_run(job: Job) -> Iterator[TrackedJob | None]:
    """The tracker of a run, opened; it is told how the run ended when the context ends. None: the run has none."""
    selected = job.plan.tracker
    if selected is None:
        yield None
        return
    made = TrackedJob(Contained(selected.component.spec.name, job.display.say))
    made.opened = made.calls.call(lambda: _opened(selected, job))
    try:
        yield made
    except KeyboardInterrupt:  # `Stop` too
        made.end("stopped")
        raise
    except BaseException:
        made.end("failed")
        raise
    else:
        made.end("finished")


def _opened(selected: SelectedComponent, job: Job) -> Any:
    run = TrackedRun(
        name=job.run.path.name,
        directory=job.run.path.absolute(),
        configuration=as_dict(job.plan.config),
        total_steps=job.steps,
        first_step=0 if job.checkpoint is None else job.checkpoint.step,
    )
    opened = selected.create().open(run)
    if opened is None:
        raise PluginError("open() returned None, not an object with the methods log and end")
    selected.component.check_methods(opened, METHODS, "open()")
    return opened
