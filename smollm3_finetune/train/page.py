"""The page of a run: what only the page needs is recorded when it is known, and `report.html` is written at the end.

No failure here ends a run: it is reported in one sentence. `train.report=false` leaves out both.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from smollm3_finetune.config.load import DEFAULT
from smollm3_finetune.data.preview import Inspector
from smollm3_finetune.errors import SmolLM3Error, first_line
from smollm3_finetune.report.recorded import add_warnings, write_data, write_origins
from smollm3_finetune.report.rows import counts, first_rows
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.display import Display
from smollm3_finetune.train.setup import Job

WARNING = "warning"


class KeepsWarnings:
    """A display that also keeps the warnings, in the run directory as soon as there is one."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.warnings: list[str] = []
        self.run: RunDir | None = None

    def say(self, message: str) -> None:
        self.display.say(message)
        lines = [line for line in message.splitlines() if line.startswith(WARNING)]
        self.warnings += [line.removeprefix(WARNING).lstrip(": ") for line in lines]
        if lines and self.run is not None:
            self.keep_in(self.run)

    def keep_in(self, run: RunDir) -> None:
        """Write the warnings to the run, also those that follow."""
        self.run = run
        with contextlib.suppress(OSError):  # they were displayed
            add_warnings(run, self.warnings)

    def begin(self, total_steps: int, done: int) -> None:
        self.display.begin(total_steps, done)

    def step(self, row: Mapping[str, Any]) -> None:
        self.display.step(row)

    def end(self) -> None:
        self.display.end()


def record(job: Job) -> None:
    """Write where the values of the configuration come from, and counts, lengths and three rows of the data."""
    if isinstance(job.display, KeepsWarnings):
        job.display.keep_in(job.run)
    origins = {k: o for k, o in job.plan.origins.items() if o != DEFAULT}
    with _reported("origins.json", job.display.say):
        write_origins(job.run, origins, resumed=job.checkpoint is not None)
    if job.plan.config.train.report:
        with _reported("data.json", job.display.say):
            write_data(job.run, {**_counts(job), "rows": _rows(job)})


def write_page(job: Job) -> None:
    """Write `report.html`, if the run still has its directory. If it is switched off, delete one that is outdated."""
    run, say = job.run, job.display.say
    if not run.config.exists():
        return
    from smollm3_finetune.report.write import is_page, write_report

    with _reported("report.html", say):
        if job.plan.config.train.report:
            write_report([run], ended=True)
        elif is_page(run.page) and _is_outdated(run):
            run.page.unlink()
            say(
                f"{run.page} is deleted, because it was written before the run was resumed; to write it again: "
                f"smollm3 runs report {shlex.quote(str(run.path))}"
            )


def _is_outdated(run: RunDir) -> bool:
    """Whether the page was written before the end of the run."""
    written = run.page.stat().st_mtime_ns
    ends = [file.stat().st_mtime_ns for file in (run.report, run.error) if file.exists()]
    return not run.report.exists() or max(ends) > written


def _counts(job: Job) -> dict[str, Any]:
    return counts(job.tokens.train, job.tokens.held_out, job.tokens.counts)


def _rows(job: Job) -> list[dict[str, Any]]:
    """The first rows with their loss masks, prepared again: tokens alone do not know their location."""
    plan = job.plan
    chunk = plan.config.data.long_text == "chunk"
    length = plan.config.data.max_length
    return first_rows(Inspector(plan.rows, plan.survey, plan.objective, job.renderer, length, chunk=chunk))


@contextlib.contextmanager
def _reported(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Report a failure inside the context instead of raising it. A request to stop is not a failure."""
    try:
        yield
    except Exception as e:
        reason = e.message if isinstance(e, SmolLM3Error) else f"{type(e).__name__}: {first_line(e)}"
        say(f"warning: {name} was not written: {reason}")
