"""What ended the processes of a launched run: each writes it, the launching process reads it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smollm3_finetune import stopping
from smollm3_finetune.errors import Problems, SmolLM3Error, first_line
from smollm3_finetune.files.failures import resource_error
from smollm3_finetune.files.json import json_object, write_json
from smollm3_finetune.runs.rundir import RunDir

LOST = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|gloo/|NCCL|timed out waiting|"
    r"failed in the main process$|no error detail|recvValue failed|remote process exited",
    re.IGNORECASE,
)
"""Texts of errors in the other processes when one process has ended."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What ended a process."""

    kind: Literal["error", "lost", "stop"]
    """Its own error; the loss of another process; a request to stop."""
    message: str
    hint: str | None
    exit_code: int
    rank: int = 0

    def error(self) -> SmolLM3Error:
        """The error, of the class with this exit code."""
        kinds = {cls.exit_code: cls for cls in SmolLM3Error.__subclasses__() if cls is not Problems}
        return kinds.get(self.exit_code, SmolLM3Error)(self.message, hint=self.hint)


def lost_another(error: BaseException, processes: int) -> bool:
    """Whether an error of one of several processes only means that another one has ended."""
    seen: BaseException | None = error
    while processes > 1 and seen is not None:
        distributed = type(seen).__module__.startswith("torch.distributed") or type(seen).__name__.startswith("Dist")
        if distributed or (isinstance(seen, RuntimeError | SmolLM3Error) and LOST.search(str(seen).partition("\n")[0])):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def ended_by(error: BaseException, processes: int) -> Ended:
    rank = int(os.environ.get("RANK") or 0)
    if isinstance(error, stopping.Stop) or (stopped := stopping.delivered()) is not None:
        stop = error if isinstance(error, stopping.Stop) else stopped
        assert stop is not None
        return Ended(kind="stop", message=stop.message, hint=stop.hint, exit_code=stop.exit_code, rank=rank)
    known = (
        error if isinstance(error, SmolLM3Error) else resource_error(error) if isinstance(error, Exception) else None
    )
    known = known.problems[0] if isinstance(known, Problems) else known
    if known is None:
        known = SmolLM3Error(f"unexpected {type(error).__name__}: {first_line(error)}",
                             hint="run the same command with --debug, and report it")  # fmt: skip
    kind: Literal["error", "lost"] = "lost" if lost_another(error, processes) else "error"
    return Ended(kind=kind, message=known.message, hint=known.hint, exit_code=known.exit_code, rank=rank)


@contextlib.contextmanager
def recorded(run: RunDir, processes: int) -> Iterator[None]:
    """Inside the context, whatever ends this process is written for the launching one."""
    file = _file(run, int(os.environ.get("RANK") or 0))
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
    try:
        yield
    except BaseException as e:
        found = ended_by(e, processes)
        with contextlib.suppress(OSError):  # a full disk: what ended the run is still printed
            file.parent.mkdir(exist_ok=True)
            write_json(file, vars(found))
        raise


def read_ended(run: RunDir) -> list[Ended]:
    """What ended the processes, the cause first: own errors before requests and before the loss of others."""
    order = {"error": 0, "stop": 1, "lost": 2}
    found = []
    for file in sorted(run.launched.glob("ended-*.json")) if run.launched.is_dir() else []:
        with contextlib.suppress(TypeError):
            found.append(Ended(**json_object(file)))
    return sorted(found, key=lambda one: (order.get(one.kind, 2), one.rank))


def forget_ended(run: RunDir) -> None:
    shutil.rmtree(run.launched, ignore_errors=True)


def _file(run: RunDir, rank: int) -> Path:
    return run.launched / f"ended-{rank}.json"
