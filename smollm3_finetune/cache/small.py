"""Small JSON files in the cache that are read at once, and are valid while certain files are unchanged.

Imports only light modules of the standard library: completion reads such files. A cache that cannot be written is not
an error: the content is then computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from typing import Any

from smollm3_finetune.cache.place import cache_folder

KEPT = 90 * 86400.0
"""Seconds after which a file is deleted, when another one in its folder is written."""
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""What reading values from a damaged file raises."""


def small_file(folder: str, name: str) -> str | None:
    """The path of a file in a folder of the cache; None if there is no place for a cache."""
    cache = cache_folder()
    return None if cache is None else os.path.join(os.path.expanduser(cache), folder, f"{name}.json")


def read_small(file: str) -> dict[str, Any] | None:
    """The object in a file; None if it does not exist or is damaged."""
    try:
        with open(file, encoding="utf-8") as stream:
            data = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def write_small(file: str, data: dict[str, Any]) -> None:
    """Replace a file at once, if the cache can be written: a reader finds the old content or the new one."""
    folder, partial = os.path.dirname(file), f"{file}.{os.getpid()}"
    try:
        os.makedirs(folder, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as stream:
            json.dump(data, stream, separators=(",", ":"), ensure_ascii=False)
        os.replace(partial, file)
        for entry in os.scandir(folder):
            if entry.stat().st_mtime < time.time() - KEPT:
                os.unlink(entry.path)
    except (OSError, ValueError):  # read-only, full, or a text that cannot be encoded
        with contextlib.suppress(OSError):
            os.unlink(partial)


def file_state(path: str) -> list[Any]:
    """The path of a file, its modification time in nanoseconds and its size; zeros if it does not exist."""
    try:
        about = os.stat(path)
    except OSError:
        return [path, 0, 0]
    return [path, about.st_mtime_ns, about.st_size]


def file_states(files: Iterable[str]) -> list[list[Any]]:
    return [file_state(file) for file in files]


def unchanged(states: Iterable[list[Any]]) -> bool:
    """Whether files have the states that `file_states` returned earlier."""
    return all(file_state(state[0]) == state for state in states)


def text(value: Any) -> str:
    """The value, if it is text. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def texts(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """The values of these keys, which must be text. Raises KeyError or TypeError."""
    return {name: text(row[name]) for name in names}
