"""Errors of Ray as one sentence, and errors of a run that cross processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from smollm3_finetune.api import SmolLM3Error

LOGS = "Ray's logs: /tmp/ray/session_latest/logs on the machine of the worker, or --launcher-opt logs=true"
NO_MEMORY = "NODE_OUT_OF_MEMORY"
"""The reason that Ray states for a worker that it killed because its machine ran out of memory."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Read error [", "NCCL communicator was aborted")
"""How torch says that another process of the run is gone."""


class RunError(Exception):
    """An error that a run reported, on its way from a worker to the launching process."""

    def __init__(self, message: str, hint: str | None = None, final: bool = False) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint
        self.final = final
        """Whether the same settings, rows and model would give the same error again."""

    def __reduce__(self) -> tuple[Callable[..., RunError], tuple[Any, ...]]:
        return RunError, (self.message, self.hint, self.final)


def portable(error: SmolLM3Error) -> RunError:
    """The error as one that can be pickled. One of class SmolLM3Error itself may have been caused by a dead process."""
    return RunError(error.message, error.hint, final=type(error) is not SmolLM3Error)


def as_one_sentence(error: BaseException) -> SmolLM3Error:
    """What ended Ray Train's `fit`."""
    if failures := getattr(error, "worker_failures", None):
        return _of_workers(failures)
    cause = getattr(error, "controller_failure", None) or error
    if isinstance(cause, RunError):
        return SmolLM3Error(cause.message, hint=cause.hint)
    return SmolLM3Error(f"Ray could not run the workers: {first_line(cause)}", hint=LOGS)


def _of_workers(failures: Mapping[int, BaseException]) -> SmolLM3Error:
    """The error of the worker that explains those of the others: a death, else what the run reported."""
    rank, error = min(failures.items(), key=lambda item: (not died(item[1]), not isinstance(item[1], RunError), item))
    if isinstance(error, RunError):
        return SmolLM3Error(error.message, hint=error.hint)
    return SmolLM3Error(f"worker {rank} {what_happened(error)}", hint=LOGS)


def died(error: BaseException) -> bool:
    """Whether the process of the worker ended, rather than raised something."""
    return hasattr(error, "health_check_failure")


def what_happened(error: BaseException) -> str:
    """What happened to a worker, as the rest of a sentence that begins with it."""
    if not died(error):
        if any(text in str(error) for text in LOST):
            return "lost its connection to another worker"
        return f"failed with {type(error).__name__}: {first_line(error)}"
    if NO_MEMORY in str(error):
        return "was killed because its machine ran out of memory"
    return "died: its process was killed, or its machine is gone"


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
