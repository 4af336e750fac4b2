"""All errors that this project raises on purpose.

    SmolLM3Error                 exit code 1
    ├── ConfigError              2   a wrong key, option or value
    │   └── UnknownComponentError 2  a name that no installed plugin offers
    ├── IncompatibleError        3   components that cannot work together, or on this device
    │   └── UnsupportedOp        3   an operation that a layer does not provide
    ├── MissingRequirementError  4   a missing package or accelerator
    ├── DataError                5   missing, malformed or unusable training rows
    ├── ModelError               6   a missing or damaged model or saved adapter
    │   └── MissingWeightsError  6   a checkpoint that lacks weights of its architecture
    ├── PluginError              7   a broken plugin that the run needs
    │   └── PluginConflictError  7   one name offered by two plugins
    └── Problems                     several errors at once; exit code of the first

Library code raises these errors and never click's exceptions; only `smollm3_finetune.main` prints them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


class SmolLM3Error(Exception):
    """An error that the user can fix: one sentence, and a hint that can be typed."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(SmolLM3Error):
    """The configuration or the command line has a wrong key, option or value."""

    exit_code = 2


class UnknownComponentError(ConfigError):
    """No active plugin offers the requested loader, quantizer, adapter, formatter or objective."""


class IncompatibleError(SmolLM3Error):
    """The components exist, but cannot be used together or on this device."""

    exit_code = 3


class UnsupportedOp(IncompatibleError):
    """A layer does not provide the requested operation."""


class MissingRequirementError(SmolLM3Error):
    """A package, a version of it or an accelerator that a selected component requires is missing."""

    exit_code = 4


class DataError(SmolLM3Error):
    """Training rows are missing, malformed or unusable."""

    exit_code = 5


class ModelError(SmolLM3Error):
    """A model or a saved adapter is missing or damaged, or does not match."""

    exit_code = 6


class MissingWeightsError(ModelError):
    """A checkpoint lacks weights that its architecture has."""

    def __init__(self, message: str, *, names: Sequence[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.names = list(names)


class PluginError(SmolLM3Error):
    """A plugin that the run needs cannot be imported, or violates the plugin contract."""

    exit_code = 7


class PluginConflictError(PluginError):
    """Two plugins offer the same name, and it was used without its distribution."""


class Problems(SmolLM3Error):
    """Several independent problems, reported together so that they can be fixed together."""

    def __init__(self, problems: Sequence[SmolLM3Error]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)
        self.exit_code = problems[0].exit_code


def raise_all(problems: Sequence[SmolLM3Error]) -> None:
    """Raise the problem, or several as `Problems`; do nothing if there is none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for use in a one-sentence message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to a mistyped one, or None."""
    import difflib  # imported only for a typo, which keeps --help fast

    if len(name) > 100:  # not a typo, and comparing takes a time that grows with the square of its length
        return None

    close = difflib.get_close_matches(name, list(known), n=5, cutoff=0.55)
    swapped = [n for n in close if sorted(n) == sorted(name)]  # swapped letters are the most common typo
    return next(iter((*swapped, *close)), None)


FULL = (errno.ENOSPC, errno.EDQUOT)
NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""Texts of the RuntimeErrors that torch raises for lack of memory if it has no specific exception for it."""


def is_resource_error(error: BaseException) -> bool:
    """Whether an exception means a full disk or too little memory, not a bug in a plugin, a file or the network.

    Let such an exception propagate unchanged: `smollm3` reports it in one sentence.
    """
    return is_full(error) or is_out_of_memory(error)


def is_full(error: BaseException) -> bool:
    """Whether the disk or the user's quota is full."""
    return _has_errno(error, FULL)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the computer or its accelerator is out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # Python's, torch's
        return True
    in_text = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return in_text or _has_errno(error, (errno.ENOMEM,))


def _has_errno(error: BaseException, numbers: tuple[int, ...]) -> bool:
    """Whether it is an OSError with one of these numbers, or an error of a Rust library, which has it in its text."""
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(f"(os error {number})" in str(error) for number in numbers)


class Collector:
    """Runs checks and collects their errors, so that independent errors are reported together."""

    def __init__(self) -> None:
        self.problems: list[SmolLM3Error] = []

    def run(self, check: Callable[[], T]) -> T | None:
        """The value of `check`; if it fails, None, and its error is collected."""
        try:
            return check()
        except Problems as several:
            self.problems += several.problems
        except SmolLM3Error as one:
            self.problems.append(one)
        return None

    def finish(self) -> None:
        """Raise the collected errors, if there are any."""
        raise_all(self.problems)
