"""Permissions of written files: those that the user's umask gives to a new file.

safetensors creates files with mode 0600, and `tempfile` directories with 0700, whatever the umask. Every directory that
is published passes through `apply_umask`, so that plugins and libraries need not care.
"""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path

READ = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


def apply_umask(directory: Path) -> None:
    """Give everything in `directory`, and itself, the permissions of a new file or directory; none are removed.

    Links are not followed.
    """
    of_file, of_directory = _modes(directory)
    _add(directory, of_directory)
    for path in directory.rglob("*"):
        _add(path, of_directory if path.is_dir() else of_file)


def _modes(directory: Path) -> tuple[int, int]:
    """The modes of a new file and of a new directory in `directory`.

    They are those of a file created there: Python cannot read the umask without changing it for all threads, and the
    file system may have defaults of its own.
    """
    probe = directory / f".smollm3-mode-{uuid.uuid4().hex[:8]}"
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        of_file = stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()
    return of_file, of_file | (of_file & READ) >> 2  # whoever may read a directory may enter it


def _add(path: Path, mode: int) -> None:
    if path.is_symlink():
        return
    present = stat.S_IMODE(path.stat().st_mode)
    if present | mode != present:
        path.chmod(present | mode)
