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
    │   ├── PluginConflictError  7   one name offered by two plugins
    │   └── PluginTimeoutError   7   a light function of a plugin that does not return
    ├── WriteError               8   a file that cannot be written: the disk is full, read-only or faulty
    ├── VerdictError             9   a verdict that --fail-if does not accept
    └── Problems                     several errors at once; exit code of the first

Library code raises these errors and never click's exceptions; only `smollm3_finetune.main` prints them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


class SmolLM3Error(Exception):
    """An error that the user can fix: one sentence and, usually, a hint."""

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
    """No active plugin offers the requested component: a loader, quantizer, adapter, launcher, …"""


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


class PluginTimeoutError(PluginError):
    """A light function of a plugin, such as a hook, does not return within the limit."""


class WriteError(SmolLM3Error):
    """A file cannot be written: the disk is full, read-only or faulty, or its directory no longer exists."""

    exit_code = 8


class VerdictError(SmolLM3Error):
    """The model is worse than the other one, or not better, and `--fail-if` was given; the report was printed."""

    exit_code = 9


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


SHORT, SHORT_CUTOFF = 4, 0.65
"""Two names must be more similar if one has so few letters: in short words, equal letters are often chance."""


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to a mistyped one, or None."""
    import difflib  # imported only for a typo, which keeps --help fast

    if len(name) > 100:  # not a typo, and comparing takes a time that grows with the square of its length
        return None

    known = list(known)
    if len(name) > 2 and (longer := [n for n in known if n.lower().startswith(name.lower())]):
        return longer[0]
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.55)
    near = set(difflib.get_close_matches(name, close, n=5, cutoff=SHORT_CUTOFF))
    close = [n for n in close if min(len(n), len(name)) > SHORT or n in near or _abbreviates(name, n)]
    swapped = [n for n in close if sorted(n) == sorted(name)]  # swapped letters are the most common typo
    return next(iter((*swapped, *close)), None)


def _abbreviates(short: str, word: str) -> bool:
    """Whether letters were left out of a word, from behind its first to before its last, such as `args`."""
    letters = iter(word)
    return short[:1] == word[:1] and short[-1:] == word[-1:] and all(letter in letters for letter in short)


EDQUOT = getattr(errno, "EDQUOT", errno.ENOSPC)
"""The user's quota is full; Windows does not have it."""
ONLY_WRITES = (errno.ENOSPC, EDQUOT, errno.EROFS, errno.EFBIG)
"""Error numbers that only a failed write has; others, such as EIO, may also come from reading."""
NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    ": Cannot allocate memory (12)",
)
"""Texts of the RuntimeErrors that torch raises for lack of memory if it has no specific exception for it."""


UNFINISHED_TEXT = re.compile(
    r"PytorchStreamWriter failed|inline_container\.\w+:\d+\] \. (unexpected pos|open file failed)"
    r"|^basic_ios::clear: iostream error|^\d+ requested and \d+ written$"
)
"""Texts of failed writes without an error number: of torch's writer, and of NumPy."""
NUMBER_IN_TEXT = re.compile(r"\((?:os error )(\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
"""The error number in the texts of Rust libraries (safetensors, tokenizers) and of Arrow."""
SQLITE = {13: errno.ENOSPC, 8: errno.EROFS, 10: errno.EIO}
"""Error numbers of SQLite's primary result codes."""


def is_resource_error(error: BaseException) -> bool:
    """Whether an exception means a failed write or too little memory, not a bug in a plugin, a file or the network.

    A failed write: the disk or the quota is full, the file system is read-only, or a file would be too large. Let such
    an exception propagate unchanged: `smollm3` reports it in one sentence.
    """
    return is_failed_write(error) or is_out_of_memory(error)


def is_failed_write(error: BaseException) -> bool:
    """Whether an exception can only come from a failed write, whichever library raised it."""
    return isinstance(error, WriteError) or error_number(error) in ONLY_WRITES or is_unfinished_write(error)


def is_unfinished_write(error: BaseException) -> bool:
    """Whether it is a failed write whose error number the library does not report."""
    return isinstance(error, RuntimeError | OSError) and UNFINISHED_TEXT.search(str(error)) is not None


def error_number(error: BaseException) -> int | None:
    """The error number of the operating system in an OSError, or in an error of Rust, Arrow, SQLite or torch."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(code := getattr(error, "sqlite_errorcode", None), int):
        return SQLITE.get(code & 0xFF)
    if isinstance(error, SmolLM3Error):
        return None
    text = str(error)
    if found := NUMBER_IN_TEXT.search(text):
        return int(found[1] or found[2])
    if isinstance(error, RuntimeError) and (found := re.search(r"failed with strerror: (.+)", text)):  # torch's writer
        return next((number for number in errno.errorcode if os.strerror(number) == found[1].strip()), None)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the computer or its accelerator is out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # Python's, torch's
        return True
    in_text = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return in_text or error_number(error) == errno.ENOMEM


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
