"""Finds the runs below a directory, and the run that a command names."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from smollm3_finetune.errors import ConfigError, ModelError, did_you_mean
from smollm3_finetune.paths import user_path
from smollm3_finetune.runs.rundir import RUNS, RunDir
from smollm3_finetune.runs.traces import is_run, run_folders


def find_runs(folder: Path) -> Iterator[RunDir]:
    """Every run in or below a folder, or the folder itself if it is a run.

    Directories inside a run are not searched, nor hidden ones. A directory that cannot be read is skipped; one that
    several links lead to is searched once.
    """
    yield from (RunDir(Path(path)) for path in run_folders(str(folder)))


def runs_folder(text: str | None) -> Path:
    """The folder of `--runs`, by default `runs/`. Raises ConfigError if a folder that was given does not exist."""
    if text is None:
        return RUNS
    folder = user_path(text, "--runs")
    if not folder.is_dir():
        raise ConfigError(f"--runs {text} is not a directory", hint="--runs FOLDER_OF_RUNS")
    return folder


def named_run(text: str, folder: Path, command: str) -> RunDir:
    """The run at a path, or the one of this name below a folder. Raises ModelError if there is none.

    `command` is shown in the hint.
    """
    path = user_path(text, "RUN")
    with contextlib.suppress(OSError):
        if path.is_dir() and is_run(set(os.listdir(path))):
            return RunDir(path)
    known = list(find_runs(folder))
    named = [run for run in known if run.path.name == text]
    if len(named) == 1:
        return named[0]
    if named:
        shown = ", ".join(str(run.path) for run in named)
        raise ModelError(
            f"several runs are called {text!r}: {shown}", hint=f"{command} {shlex.quote(str(named[0].path))}"
        )
    run, near = RunDir(path), [*_beside(path), *known]
    if (inside := run.containing()) is not None:
        hint = f"it is inside a run: {command} {shlex.quote(str(inside))}"
    elif similar := did_you_mean(path.name, [other.path.name for other in near]):
        nearest = next(other for other in near if other.path.name == similar)
        hint = f"did you mean {shlex.quote(str(nearest.path))}?"
    else:
        hint = "to see the runs: smollm3 runs list"
    raise ModelError(run.why_none(), hint=hint)


def _beside(path: Path) -> list[RunDir]:
    """The runs in the directory in which a run was looked for, if the path names one."""
    return list(find_runs(path.parent)) if path.parent != Path() and path.parent.is_dir() else []
