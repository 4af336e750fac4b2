"""Hashes of files and models, each computed once in a process unless size or time of a file change."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from smollm3_finetune.files.json import file_sha256


class Contents:
    """The hashes that are known."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def file(self, path: Path) -> str:
        """The SHA-256 of a file."""
        found: str = self.once(("file",), path, lambda: file_sha256(path))
        return found

    def once(self, about: Hashable, path: Path, compute: Callable[[], Any]) -> Any:
        """What `compute` returned for `about` while the file or directory `path` was as it is now; it need not exist.

        Anything that the path does not hold, such as a model of the Hub, is taken as unchanged.
        """
        key = (about, str(path.absolute()), _stamps(path))
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


def _stamps(path: Path) -> Hashable:
    """Size, time of change and inode of a file, or of every file in a directory."""
    if path.is_file():
        return _stamp(path)
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else []
    return tuple((str(f), _stamp(f)) for f in files)


def _stamp(file: Path) -> Hashable:
    about = file.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino
