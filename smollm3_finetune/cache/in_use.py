"""Marks entries of the cache as in use, so that `smollm3 cache clean` in another process does not delete them.

Each user of an entry holds a lock on a file of its own, `<key>.use-*`. The system releases the lock when the process
ends, however it ends; the file that a killed process leaves is deleted with the entry or by the next `cache clean`.
"""

from __future__ import annotations

import contextlib
import os
import uuid
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

WAIT = 10.0
"""Seconds to wait for another process that examines the new file at this moment."""

_own: set[str] = set()
"""The files that this process holds."""


class Use:
    """One use of an entry, until this object is deleted or the process ends. The caller holds the entry's lock."""

    def __init__(self, entry: Path) -> None:
        """Raises OSError or Timeout if the cache cannot be written."""
        from filelock import FileLock

        file = entry.with_name(f"{entry.name}.use-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        lock = FileLock(str(file), timeout=WAIT, thread_local=False)  # released by whichever thread deletes this object
        lock.acquire()
        _own.add(_real(file))
        weakref.finalize(self, _release, lock, file, os.getpid())


def _release(lock: BaseFileLock, file: Path, owner: int) -> None:
    if os.getpid() != owner:  # a fork: the entry is still in use by its parent
        return
    lock.release()
    _own.discard(_real(file))
    with contextlib.suppress(OSError):
        file.unlink()


def in_use(entry: Path) -> bool:
    """Whether another process uses an entry. Never waits."""
    return any(_held_by_another(file) for file in entry.parent.glob(f"{entry.name}.use-*"))


def forget_uses(entry: Path) -> None:
    """Delete the files of killed processes. The caller holds the entry's lock, and the entry is not in use."""
    for file in entry.parent.glob(f"{entry.name}.use-*"):
        if _real(file) not in _own:
            file.unlink(missing_ok=True)


def _held_by_another(file: Path) -> bool:
    from filelock import FileLock, Timeout

    if _real(file) in _own:
        return False
    lock = FileLock(str(file), timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _real(file: Path) -> str:
    return os.path.realpath(file)
