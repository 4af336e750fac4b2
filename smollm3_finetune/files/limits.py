"""Limits on files that somebody else made: sizes, nesting, seconds, memory. Each can be raised with a variable.

A file beyond a limit is refused by name before it is parsed. All JSON that this project reads goes through `load_json`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ConfigError, ModelError

KB, MB = 1_000, 1_000_000
_NOT_REGULAR = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


@dataclass(frozen=True)
class Limit:
    """A limit, and the environment variable that changes it."""

    variable: str
    default: int
    what: str
    """What it limits, with the unit, for the documentation."""

    def value(self) -> int:
        """The value of the variable, else the default. Raises ConfigError if the variable is not a positive integer."""
        text = os.environ.get(self.variable, "")
        if not text:
            return self.default
        if not text.isascii() or not text.isdigit() or not 0 < len(text) <= 12 or int(text) == 0:
            raise ConfigError(
                f"{self.variable} must be a positive integer, got {text[:40]!r}", hint=f"{self.variable}={self.default}"
            )
        return int(text)

    @property
    def size(self) -> int:
        """The value in bytes, for a limit in kB or MB."""
        return self.value() * (KB if self.variable.endswith("KB") else MB)

    @property
    def hint(self) -> str:
        return f"if you trust the file: {self.variable}={2 * self.value()}"


JSON_SIZE = Limit("SMOLLM3_MAX_JSON_MB", 256, "MB of a JSON file, or of a row of a .jsonl file")
CONFIG_SIZE = Limit("SMOLLM3_MAX_CONFIG_KB", 500, "kB of a YAML file or of a chat template")
DEPTH = Limit("SMOLLM3_MAX_DEPTH", 100, "levels of nested lists and mappings in JSON and YAML")
YAML_VALUES = Limit("SMOLLM3_MAX_YAML_VALUES", 20_000, "values in YAML, counting each alias at its expanded size")
SECONDS = Limit("SMOLLM3_MAX_SECONDS", 10, "seconds for rendering one conversation, and for matching an adapter's "
                "regular expressions")  # fmt: skip
TEXT_SIZE = Limit("SMOLLM3_MAX_TEXT_MB", 64, "MB of text that a chat template renders for one conversation")
ROWS_SIZE = Limit("SMOLLM3_MAX_ROWS_MB", 4000, "MB of memory to decompress and hold one batch of rows of a Parquet or "
                  "Arrow file")  # fmt: skip
LIMITS = (JSON_SIZE, CONFIG_SIZE, DEPTH, YAML_VALUES, SECONDS, TEXT_SIZE, ROWS_SIZE)


class BeyondLimit(ValueError):
    """A file exceeds a limit; the message names the limit's variable."""

    def __init__(self, what: str, limit: Limit) -> None:
        super().__init__(f"{what} (the limit is {limit.variable}={limit.value()})")
        self.limit = limit


def shown_bytes(size: int) -> str:
    """`256 MB`"""
    return f"{size // MB} MB" if size >= MB else f"{size // KB} kB"


def not_regular(path: Path) -> str | None:
    """`a named pipe`, `a device` or `a socket` if the path is one, with links resolved; None for anything else."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return next((word for test, word in _NOT_REGULAR.items() if test(mode)), None)


def check_regular(directory: Path) -> None:
    """Raises ModelError if a directory contains a named pipe, a device or a socket, whose reader may wait forever."""
    for entry in sorted(directory.iterdir()):
        if kind := not_regular(entry):
            raise ModelError(f"{entry} is {kind}, not a file", hint="replace it with the file")


def read_bytes(path: Path, limit: Limit) -> bytes:
    """The content of a regular file of at most `limit`.

    Raises OSError if it cannot be read, and BeyondLimit if it is larger; a pipe or a device is not waited for.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as stream:
        about, most = os.fstat(stream.fileno()), limit.size
        if not stat.S_ISREG(about.st_mode):
            kind = next((word for test, word in _NOT_REGULAR.items() if test(about.st_mode)), "something else")
            raise OSError(f"it is {kind}, not a file")
        data = b"" if about.st_size > most else stream.read(min(2 * about.st_size + 65536, most + 1))
    if max(len(data), about.st_size) > most:
        raise BeyondLimit(f"it is larger than {shown_bytes(limit.size)}", limit)
    return data


def read_text(path: Path, limit: Limit, encoding: str = "utf-8") -> str:
    """The text of a regular file of at most `limit`. Raises OSError, UnicodeDecodeError or BeyondLimit."""
    return read_bytes(path, limit).decode(encoding).replace("\r\n", "\n")


def load_json(path: Path) -> Any:
    """The value in a JSON file. Raises OSError if it cannot be read, ValueError if it is invalid or beyond a limit."""
    return parse_json(read_text(path, JSON_SIZE))


def parse_json(text: str) -> Any:
    """The value of JSON text. Raises ValueError if it is invalid or nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep() from None
    check_depth(value, brackets=text.count("[") + text.count("{"))
    return value


def too_deep() -> BeyondLimit:
    return BeyondLimit(f"it is nested too deeply, more than {DEPTH.value()} levels", DEPTH)


def check_depth(value: Any, *, brackets: int | None = None) -> None:
    """Raises BeyondLimit if lists and mappings are nested too deeply.

    `brackets` is the number of opening brackets in the text of the value, if known: few cannot be nested deeply.
    """
    limit = DEPTH.value()
    if brackets is not None and brackets <= limit:
        return
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _children(outer)]:
        depth += 1
        if depth > limit:
            raise too_deep()


def _children(value: Any) -> Iterator[Any]:
    """The items of a list or mapping; a scalar has none, so the last level of a value consists of its scalars."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
