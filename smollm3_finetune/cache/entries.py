"""Lists, checks and deletes the entries of the cache: `smollm3 cache list`, `verify` and `clean`.

Only directories that this project made are considered: those named by a key, and leftovers of killed builds. Links are
never followed, so nothing outside the root is measured or deleted.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.cache.in_use import forget_uses, in_use
from smollm3_finetune.cache.store import damage_of, partial_name, sums_file
from smollm3_finetune.cache.use import keeping, runs_file
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.room import size_of

KEY = re.compile(r"[0-9a-f]{32}")
LEFTOVER = re.compile(r"([0-9a-f]{32})\.partial-\d+-[0-9a-f]+")
DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished entry of the cache."""

    path: Path
    size: int
    """Bytes on disk."""
    used: float
    """The time of its last use or build, in seconds since the epoch."""
    made_from: Mapping[str, Any]
    runs: tuple[Path, ...]
    """The runs that depend on it."""
    in_use: bool = False
    """Whether another process uses it now."""

    @property
    def kind(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.path.name}"

    @property
    def has_checksums(self) -> bool:
        """Whether it can be checked; the first use of an entry of an earlier version writes its checksums."""
        return sums_file(self.path).exists()

    def damage(self) -> str | None:
        """What is wrong with it, such as `model.safetensors differs from its checksum`; reads every file."""
        return damage_of(self.path)

    @property
    def days(self) -> float:
        """Days since its last use."""
        return max(time.time() - self.used, 0) / DAY


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _folders(root: Path, kind: str | None) -> Iterator[Path]:
    """The directories of the kinds, or of one kind."""
    with contextlib.suppress(OSError):
        yield from (p for p in sorted(root.iterdir()) if _is_folder(p) and kind in (None, p.name))


def _children(folder: Path, name: re.Pattern[str]) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (p for p in sorted(folder.iterdir()) if name.fullmatch(p.name) and _is_folder(p))


def entries(root: Path, runs: Sequence[Path] = (), kind: str | None = None) -> list[Entry]:
    """The finished entries of one kind or all, the largest first."""
    found = []
    for folder in _folders(root, kind):
        for path in _children(folder, KEY):
            about = path.with_name(f"{path.name}.json")
            if not about.is_file() and not path.with_name(f"{path.name}.lock").exists():
                continue  # a directory with such a name that no build made
            with contextlib.suppress(FileNotFoundError):  # deleted by another process
                stamp = (about if about.is_file() else path).stat().st_mtime
                needed = tuple(keeping(path, runs))
                found.append(
                    Entry(path=path, size=size_of(path), used=stamp, made_from=_read(about), runs=needed,
                          in_use=in_use(path))
                )  # fmt: skip
    return sorted(found, key=lambda e: (-e.size, e.name))


def leftovers(root: Path, kind: str | None = None) -> list[Path]:
    """Directories that killed builds left; running builds hold their lock and are not listed."""
    found = []
    for folder in _folders(root, kind):
        for path in _children(folder, LEFTOVER):
            with _held(path.with_name(path.name.partition(".")[0])) as held:
                if held:
                    found.append(path)
    return found


def take_away(path: Path, root: Path) -> bool:
    """Delete an entry or a leftover; never waits.

    False if it is being built, if another process uses it, or if it is not directly in the cache `root`.
    """
    if path.is_symlink() or path.parent.is_symlink() or path.parent.parent.resolve() != root.resolve():
        return False
    key = path.name.partition(".")[0]
    entry = path.with_name(key)
    with _held(entry) as held:
        if not held or not path.is_dir():
            return False
        gone = path
        if path == entry:  # other processes find it complete or not at all
            if in_use(entry):
                return False
            gone = partial_name(entry)
            path.rename(gone)
            for file in (entry.with_name(f"{key}.json"), sums_file(entry), runs_file(entry)):
                file.unlink(missing_ok=True)
            forget_uses(entry)
        shutil.rmtree(gone, ignore_errors=True)
        return not gone.exists()


@contextlib.contextmanager
def _held(entry: Path) -> Iterator[bool]:
    """Acquire an entry's lock if it is free; yields whether it was acquired."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{entry}.lock", timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _read(file: Path) -> dict[str, Any]:
    try:
        about = load_json(file)
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def chosen(found: Iterable[Entry], older_than: float, force: bool) -> tuple[list[Entry], list[Entry]]:
    """The entries to delete, and the old entries that are kept because a run depends on them or a process uses them.

    `force` also deletes entries that runs depend on.
    """
    old = [e for e in found if e.days >= older_than]
    kept = [e for e in old if e.in_use or (e.runs and not force)]
    return [e for e in old if e not in kept], kept


def shown_origin(about: Mapping[str, Any]) -> str:
    """The source of an entry, in one line: the texts and whole numbers of its key, long ones shortened."""
    plain = {k: v for k, v in about.items() if isinstance(v, str | int) and not isinstance(v, bool)}
    return ", ".join(f"{k}={v if len(str(v)) <= 20 else f'{str(v)[:12]}…'}" for k, v in plain.items())
