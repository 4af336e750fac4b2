"""Every error this project raises on purpose, drawn as one small tree.

    SmolLM3Error                 exit code 1
    ├── ConfigError              2   a key, an option or a value is wrong
    │   └── UnknownComponentError 2  a name that no installed plugin offers
    ├── IncompatibleError        3   a pair, a device or a purpose that cannot work
    │   └── UnsupportedOp        3   a layer was asked for an operation it does not have
    ├── MissingRequirementError  4   a package or an accelerator is not there
    ├── DataError                5   the training rows are missing, malformed or unusable
    ├── ModelError               6   the model or the adapter on disk is missing or not what it should be
    │   └── MissingWeightsError  6   a checkpoint without all the weights of its architecture
    ├── PluginError              7   a plugin that the run needs is broken
    │   └── PluginConflictError  7   two plugins claim one name
    └── Problems                     several of the above, found together; the first one's exit code

Library code raises these and never click's exceptions; `smollm3_finetune.main` alone renders them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


class SmolLM3Error(Exception):
    """Something a user can mend: one sentence, and a hint that can be typed."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(SmolLM3Error):
    """A key, an option or a value in the configuration or on the command line is wrong."""

    exit_code = 2


class UnknownComponentError(ConfigError):
    """A loader, quantizer, adapter, formatter or objective that no active plugin offers."""


class IncompatibleError(SmolLM3Error):
    """The parts exist, but cannot be used together or on this device."""

    exit_code = 3


class UnsupportedOp(IncompatibleError):
    """A layer was asked for an operation that its quantizer does not provide."""


class MissingRequirementError(SmolLM3Error):
    """A package (or a version of it) or an accelerator that a chosen component requires is not there."""

    exit_code = 4


class DataError(SmolLM3Error):
    """Training rows are missing, malformed or unusable."""

    exit_code = 5


class ModelError(SmolLM3Error):
    """A model or a saved adapter is missing or is not what it should be."""

    exit_code = 6


class MissingWeightsError(ModelError):
    """A checkpoint lacks weights that its architecture has."""

    def __init__(self, message: str, *, names: Sequence[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.names = list(names)


class PluginError(SmolLM3Error):
    """A plugin that the run needs cannot be imported, or offers something that breaks the contract."""

    exit_code = 7


class PluginConflictError(PluginError):
    """Two plugins offer one name, and the bare name was used."""


class Problems(SmolLM3Error):
    """Several independent problems, reported together so that they can be mended together."""

    def __init__(self, problems: Sequence[SmolLM3Error]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)
        self.exit_code = problems[0].exit_code


def raise_all(problems: Sequence[SmolLM3Error]) -> None:
    """Raise nothing, the one problem, or all of them as `Problems`."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message of one sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known name nearest to a mistyped one, or None."""
    import difflib  # when something is mistyped: help stays light

    near = difflib.get_close_matches(name, list(known), n=5, cutoff=0.55)
    swapped = [n for n in near if sorted(n) == sorted(name)]  # letters in the wrong order are the likeliest slip
    return next(iter((*swapped, *near)), None)


FULL = (errno.ENOSPC, errno.EDQUOT)
NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""What torch says in a RuntimeError, where it has no exception of its own for that."""


def is_resource_error(error: BaseException) -> bool:
    """Whether an exception tells of a full disk or of too little memory: no fault of a plugin, a file or the network.

    Let such an exception pass unchanged: `smollm3` tells it in a sentence.
    """
    return is_full(error) or is_out_of_memory(error)


def is_full(error: BaseException) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return _has_number(error, FULL)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the computer or of its accelerator does not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # Python's, torch's
        return True
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return said or _has_number(error, (errno.ENOMEM,))


def _has_number(error: BaseException, numbers: tuple[int, ...]) -> bool:
    """Whether it is an OSError of one of these numbers, or what a library in Rust makes of one: that has it as text."""
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(f"(os error {number})" in str(error) for number in numbers)


class Collector:
    """Runs checks and keeps their errors, so that independent ones are reported together."""

    def __init__(self) -> None:
        self.problems: list[SmolLM3Error] = []

    def run(self, check: Callable[[], T]) -> T | None:
        """The value of `check`, or None with its error kept."""
        try:
            return check()
        except Problems as several:
            self.problems += several.problems
        except SmolLM3Error as one:
            self.problems.append(one)
        return None

    def finish(self) -> None:
        raise_all(self.problems)
