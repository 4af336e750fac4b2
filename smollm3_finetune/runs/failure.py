"""The error that ended a run, in error.json: it distinguishes a failed run from an interrupted one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from smollm3_finetune import stopping
from smollm3_finetune.errors import Problems, SmolLM3Error, WriteError, first_line
from smollm3_finetune.files.failures import resource_error
from smollm3_finetune.files.json import read_json, write_json
from smollm3_finetune.runs.rundir import RunDir


@contextlib.contextmanager
def recorded_failure(run: RunDir, say: Callable[[str], None]) -> Iterator[None]:
    """Write error.json if an error ends the context; that of an earlier attempt is deleted first.

    A request to stop is not an error, nor what a library made of one. A finished run stays as it is until it takes
    another step, which deletes its report: an error before that is only passed on. The caller holds the directory.
    """
    finished = written(run.report)
    if finished is None:
        with contextlib.suppress(OSError):
            run.error.unlink(missing_ok=True)
    try:
        yield
    except Exception as e:
        if finished is not None and written(run.report) == finished:
            say(f"the run {run.path} has taken no new step: its adapter and its report are unchanged")
        elif isinstance(e, WriteError) or stopping.delivered() is None:
            with contextlib.suppress(OSError, ValueError):  # the error that ended the run is reported, not this one
                write_json(run.error, _about(e))
        raise


def failure_of(run: RunDir) -> dict[str, str] | None:
    """`message` and `hint` of the error that ended a run; None if no error did. Raises ModelError if it is damaged."""
    if not run.error.is_file():
        return None
    error = read_json(run.error)
    return {k: str(v) for k, v in error.items() if k in ("message", "hint") and v is not None}


def written(file: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None if it does not exist."""
    with contextlib.suppress(OSError):
        found = file.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _about(error: Exception) -> dict[str, str]:
    """The message and, if there is one, the hint."""
    known = error if isinstance(error, SmolLM3Error) else resource_error(error)
    if isinstance(known, Problems):
        known = known.problems[0]
    if known is None:
        return {"message": f"unexpected {type(error).__name__}: {first_line(error)}"}
    return {"message": known.message, **({"hint": known.hint} if known.hint else {})}
