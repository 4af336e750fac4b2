"""The names of files and directories that are being written, before they are renamed: `.partial-NAME.HOST-PID-RANDOM`.

Each write has a name of its own, so that two processes that write the same file do not disturb each other. A leftover
of a process that was killed is deleted by the next write of the same file.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial-"
"""Prefix of the name of what is being written; a leftover of a killed process has it too."""
SUFFIX = re.compile(r"\.([0-9a-f]{4})-(\d+)-[0-9a-f]{8}")
LONGEST = 200
"""Bytes of a file's name that are part of the name of its partial file: a file system takes 255 bytes."""
AGE = 24 * 60 * 60.0
"""Seconds after which a leftover of a process on another computer, whose state is not known, is deleted."""

_own: set[str] = set()
"""The names that this process made: another process with its number may have left others."""


def partial_name(path: Path) -> Path:
    """A new path beside `path`, at which this process writes it before it is renamed."""
    name = f"{_beginning(path.name)}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    _own.add(name)
    return path.with_name(name)


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A new path beside `path`, at which nothing is left at the end; what killed processes left is deleted first."""
    for leftover in path.parent.glob(f"{glob.escape(_beginning(path.name))}.*"):
        if is_abandoned(leftover):
            _delete(leftover)
    partial = partial_name(path)
    try:
        yield partial
    finally:
        _delete(partial)
        _own.discard(partial.name)


def delete_unfinished(directory: Path) -> None:
    """Delete what a killed process was writing in a directory whose lock this process holds.

    Another process that runs on this computer may write a file there without the lock, such as the page of a run.
    """
    for leftover in directory.glob(f"{PARTIAL}*"):
        if not SUFFIX.search(leftover.name) or is_abandoned(leftover, age=0.0):
            _delete(leftover)


def is_abandoned(partial: Path, age: float = AGE) -> bool:
    """Whether the process that was writing a partial file has ended, as far as it is known.

    One of another computer counts as ended if the file was changed more than `age` seconds ago. A name without a
    process, as earlier versions wrote it, does not tell.
    """
    found = SUFFIX.fullmatch(partial.name[partial.name.rfind(".") :])
    if found is None or not partial.name.startswith(PARTIAL):
        return False
    host, pid = found[1], int(found[2])
    if host != _host():
        with contextlib.suppress(OSError):
            return time.time() - partial.lstat().st_mtime >= age
        return False
    if pid == os.getpid():
        return partial.name not in _own
    import psutil

    return not psutil.pid_exists(pid)


def _beginning(name: str) -> str:
    data = os.fsencode(name)
    return PARTIAL + (name if len(data) <= LONGEST else hashlib.sha256(data).hexdigest())


def _host() -> str:
    import socket
    import zlib

    return f"{zlib.crc32(socket.gethostname().encode()) & 0xFFFF:04x}"


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
