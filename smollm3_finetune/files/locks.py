"""Locks that end with their process, and whose file says who holds them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ConfigError, SmolLM3Error
from smollm3_finetune.files.failures import writing

SHOWN = 100
"""Characters of the holder's command line in a message."""
PATIENCE = 0.2
"""Seconds to wait for a lock that another process only examines."""


@contextlib.contextmanager
def locked(file: Path, busy: str, *, wait: bool = False, instead: str = "", remove: bool = False) -> Iterator[None]:
    """Hold the lock `file`, in an existing directory. The operating system releases it when the process ends.

    If another process holds it, wait, or raise a ConfigError that begins with `busy` and names that process; its hint
    also says what to do `instead`. With `remove`, the file is deleted at the end. Raises WriteError if the file cannot
    be written, and SmolLM3Error if the file system does not support locks.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    lock = FileLock(file, timeout=-1 if wait else PATIENCE)
    try:
        with writing(file):
            lock.acquire()
    except Timeout as e:
        raise _held(file, busy, instead) from e
    except NotImplementedError as e:
        raise SmolLM3Error(
            f"the file system of {file.parent} does not support locks", hint="use a directory on another file system"
        ) from e
    acquired: object = lock  # without locks of the system, filelock has made it a SoftFileLock with a record of its own
    if not isinstance(acquired, SoftFileLock):
        with contextlib.suppress(OSError):
            file.write_text(json.dumps(_about()) + "\n", encoding="utf-8")
    try:
        yield
    finally:
        if remove:
            with contextlib.suppress(OSError):
                file.unlink()  # before the release, so that the file of another process is not deleted
        lock.release()


def is_held(file: Path) -> bool:
    """Whether a process holds the lock `file`; nothing is written, and the file need not exist.

    On Unix, a shared lock is taken for an instant, for which `locked` waits.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return file.exists() and _cannot_be_acquired(file)
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno == errno.ENOSYS:  # a file system without locks, where the file is the lock
            return _holder_lives(file)
        return e.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
    finally:
        os.close(handle)
    return False


def check_not_held(file: Path, busy: str) -> None:
    """Raises the ConfigError of `locked` if a process holds the lock `file`; nothing is written."""
    if is_held(file):
        raise _held(file, busy, "")


def _holder_lives(file: Path) -> bool:
    """Whether the process that filelock recorded in a file, which is the lock, runs here or on another computer."""
    import psutil

    try:
        pid, host = file.read_text(encoding="utf-8").split()[:2]
        return host != socket.gethostname() or psutil.pid_exists(int(pid))
    except (OSError, ValueError):
        return True


def _cannot_be_acquired(file: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _about() -> dict[str, Any]:
    """What a holder writes about itself."""
    command = shlex.join([Path(sys.argv[0]).name if sys.argv else "python", *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}


def _held(file: Path, busy: str, instead: str) -> ConfigError:
    """The error for a lock that another process holds."""
    pid, host, described = None, None, ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        text = file.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            about = json.loads(text)
            pid, host, command = int(about["pid"]), str(about["host"]), str(about["command"])
            shown = command if len(command) <= SHOWN else f"{command[:SHOWN]}…"
            described = f", since {about['since']}: {shown}"
        else:  # of filelock, which begins with the process and the host
            first, second = text.split()[:2]
            pid, host = int(first), second
    stop = "wait for it to finish, or stop it"
    if pid is None:
        return ConfigError(busy, hint=f"{stop}{f', or {instead}' if instead else ''}")
    here = host == socket.gethostname()
    return ConfigError(
        f"{busy} (process {pid}{'' if here else f' on {host}'}{described})",
        hint=f"{stop}{f': kill {pid}' if here else ''}{f'; or {instead}' if instead else ''}",
    )
