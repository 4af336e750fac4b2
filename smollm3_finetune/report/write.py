"""Writes the page of a run, or of several. Does not import torch."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.writing import write_text
from smollm3_finetune.paths import check_below_directories
from smollm3_finetune.report.page import GENERATOR, page_of_run, page_of_runs
from smollm3_finetune.report.run_view import view_of
from smollm3_finetune.runs.rundir import RunDir

MOST_RUNS = 8
"""Runs on one page: more curves cannot be told apart."""
SEVERAL = Path("runs-report.html")
"""The default file for several runs, in the working directory."""


def write_report(runs: Sequence[RunDir], output: Path | None = None, *, ended: bool = False) -> Path:
    """Write the page, whole or not at all, and return its path; by default `report.html` of the run.

    With several runs, the page shows them beside each other, by default in `runs-report.html`. A page is replaced, any
    other file is not. With `ended`, a run whose lock the caller still holds is not shown as running.

    Raises ConfigError if `output` exists and is not such a page, or if there are more than `MOST_RUNS` runs, and
    WriteError if it cannot be written.
    """
    if len(runs) > MOST_RUNS:
        raise ConfigError(f"a page shows at most {MOST_RUNS} runs, got {len(runs)}", hint="omit some of them")
    file = output or (runs[0].page if len(runs) == 1 else SEVERAL)
    _check(file)
    views = [view_of(run, ended=ended) for run in runs]
    html = page_of_run(views[0]) if len(views) == 1 else page_of_runs(views)
    with writing(file, elsewhere="--output FILE"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, html)
    return file


def is_page(file: Path) -> bool:
    """Whether a file is a page that this package wrote."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        return f'name="generator" content="{GENERATOR}'.encode() in stream.read(2000)
    return False


def _check(file: Path) -> None:
    """Raises ConfigError if `file` is a directory, or exists and is not a page that may be replaced."""
    if file.is_dir():
        raise ConfigError(f"{str(file)!r} is a directory", hint=f"--output {shlex.quote(str(file / 'report.html'))}")
    check_below_directories("--output", file)
    if not file.exists() or is_page(file):
        return
    raise ConfigError(f"{str(file)!r} exists and is not a report", hint="choose another --output")
