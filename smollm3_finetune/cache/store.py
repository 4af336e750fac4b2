"""A content-addressed cache of derived checkpoints: entries appear complete or not at all, and one process builds.

Loaders that convert (gguf) and quantizers that write checkpoints use it through `BuildContext.cache`. An entry's
name is a hash of everything that decides its content: entries never become outdated, only unused or damaged.

    <root>/<kind>/<key>/           the entry, as `build` left it
    <root>/<kind>/<key>.json       its key, readable; its modification time is the entry's last use
    <root>/<kind>/<key>.sums.json  the checksums of its files, compared before a process uses the entry
    <root>/<kind>/<key>.lock       held while the entry is built or deleted; only its holder changes the entry
    <root>/<kind>/<key>.use-*      held by a process that uses the entry (see `in_use.py`)
    <root>/<kind>/<key>.runs       the runs that depend on it, one directory per line (see `use.py`)
    <root>/<kind>/<key>.partial-*  a running build, or a leftover of a killed one; deleted by the next build
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.cache.in_use import Use
from smollm3_finetune.cache.place import cache_folder
from smollm3_finetune.errors import ConfigError, SmolLM3Error, WriteError
from smollm3_finetune.files.checksums import damage, write_checksums
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.locks import locked
from smollm3_finetune.files.writing import sync_entry, sync_tree, write_text
from smollm3_finetune.paths import user_path

HINT = "set SMOLLM3_CACHE=DIR to a writable directory"
LARGE = 5e9
"""Bytes of an entry whose check is announced, because it takes several seconds."""


def default_root() -> Path:
    """`$SMOLLM3_CACHE` with `~` expanded, else `$XDG_CACHE_HOME/smollm3`, else `~/.cache/smollm3`.

    Raises ConfigError if there is no home directory, or if the system refuses to read the path.
    """
    root = _root()
    if not os.environ.get("SMOLLM3_CACHE"):
        try:
            user_path(root, "the cache")
        except ConfigError as e:
            raise ConfigError(e.message, hint=HINT) from e
    return root


def _root() -> Path:
    folder = cache_folder()
    if folder is None:
        raise ConfigError("the cache needs a home directory, but there is none", hint=HINT)
    return user_path(folder, "SMOLLM3_CACHE") if os.environ.get("SMOLLM3_CACHE") else Path(folder)


def sums_file(entry: Path) -> Path:
    """The checksums of an entry."""
    return entry.with_name(f"{entry.name}.sums.json")


def damage_of(entry: Path) -> str | None:
    """What is wrong with a finished entry; None if nothing is, or if it has no checksums yet."""
    return damage(entry, file=sums_file(entry))


def _say_nothing(message: str) -> None:
    pass


@dataclass(frozen=True)
class Cache:
    """A directory of finished entries."""

    root: Path
    used: dict[Path, None] = field(default_factory=dict, compare=False, repr=False)
    """The entries that this object found or built, in that order."""
    say: Callable[[str], None] = field(default=_say_nothing, compare=False, repr=False)
    """Prints a line, for example about an entry that is damaged."""
    _held: dict[Path, Use] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def default(cls) -> Cache:
        """The user's cache. Its directory is not checked until an entry is looked up: not every run needs it."""
        return cls(_root())

    def reporting(self, say: Callable[[str], None]) -> Cache:
        """This cache, with lines printed by `say`."""
        return replace(self, say=say)

    def release(self) -> None:
        """Permit other processes to delete the entries that this object found or built."""
        self._held.clear()

    def location(self, kind: str, key: Mapping[str, Any]) -> Path:
        """The path of the entry of `key`, whether or not it exists."""
        return self.root / kind / fingerprint(key)

    def find(self, kind: str, key: Mapping[str, Any]) -> Path | None:
        """The finished entry of `key`, or None; a damaged entry is not found."""
        entry = self.location(kind, key)
        return self._use(entry, key) if self._has(entry) and self._hold(entry) and self._is_sound(entry) else None

    def get_or_build(self, kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """The entry of `key`, built by `build(empty directory)` if it does not exist yet or is damaged.

        `key` is JSON-like and names everything that decides the content, including versions of tools. If
        several processes need it, one builds and the others wait. A build that raises or is killed leaves no entry.
        Other processes do not delete the entry while this object exists, or until `release`.
        """
        entry, damaged = self.location(kind, key), ""
        if self._has(entry) and self._hold(entry):
            if self._is_sound(entry):
                return self._use(entry, key)
            damaged = f"the cache entry {kind}/{entry.name[:8]} is damaged"
        with self._locked(entry, damaged):
            if entry.is_dir():  # another process may have built it while this one waited
                if (found := damage_of(entry)) is None:
                    self._add_checksums(entry)
                    return self._use(entry, key)
                self.say(f"the cache entry {kind}/{entry.name[:8]} is damaged ({found}) and is built again")
            self._build(entry, build)
            self._mark(entry)
            return self._use(entry, key)

    def _build(self, entry: Path, build: Callable[[Path], None]) -> None:
        """Build an entry and replace the damaged one, if there is one. The caller holds the lock."""
        for leftover in entry.parent.glob(f"{entry.name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial, damaged = partial_name(entry), partial_name(entry)
        try:
            with self._writing():
                partial.mkdir()
                build(partial)
                sync_tree(partial)
                write_checksums(partial, file=sums_file(entry))
                if entry.is_dir():
                    entry.rename(damaged)
                partial.rename(entry)
                sync_entry(entry.parent)
        finally:
            for directory in (partial, damaged):
                shutil.rmtree(directory, ignore_errors=True)

    def _has(self, entry: Path) -> bool:
        """Whether an entry is finished. Raises SmolLM3Error if the cache directory cannot be read."""
        try:
            return entry.is_dir()
        except OSError as e:
            raise SmolLM3Error(f"the cache directory {self.root} cannot be read: {e.strerror}", hint=HINT) from e

    def _hold(self, entry: Path) -> bool:
        """Prevent that other processes delete an entry, if the cache can be written; False if it no longer exists."""
        with contextlib.suppress(SmolLM3Error), self._locked(entry):
            if entry.is_dir():
                self._mark(entry)
        return entry.is_dir()

    def _mark(self, entry: Path) -> None:
        """Mark an entry as in use while this object exists. The caller holds the lock."""
        if entry not in self._held:
            with contextlib.suppress(OSError):
                self._held[entry] = Use(entry)

    def _is_sound(self, entry: Path) -> bool:
        """Whether an entry has checksums, and its files agree with them."""
        if not sums_file(entry).exists():
            return not os.access(entry.parent, os.W_OK)  # of an earlier version, in a cache that cannot be written
        size = sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
        if size > LARGE and entry not in self.used:
            self.say(f"checking the {size / 1e9:.0f} GB of the cache entry {entry.parent.name}/{entry.name[:8]}")
        return damage_of(entry) is None

    def _add_checksums(self, entry: Path) -> None:
        """Write the checksums of an entry of an earlier version, which wrote none. The caller holds the lock."""
        if not sums_file(entry).exists():
            with contextlib.suppress(OSError):  # for example a full disk: the entry can be used without them
                write_checksums(entry, file=sums_file(entry))

    def _use(self, entry: Path, key: Mapping[str, Any]) -> Path:
        """Record the use of an entry, and its time: the modification time of its `.json`."""
        self.used[entry] = None
        file, about = entry.with_name(f"{entry.name}.json"), json.dumps(dict(key), indent=2, sort_keys=True) + "\n"
        with contextlib.suppress(OSError):  # a read-only cache
            if not file.exists() or file.read_bytes() != about.encode():
                write_text(file, about)
            os.utime(file)
        return entry

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Convert a failed write into a WriteError that names the cache directory."""
        return writing(self.root, left="finished entries are unchanged", elsewhere="SMOLLM3_CACHE=DIR")

    @contextmanager
    def _locked(self, entry: Path, problem: str = "") -> Iterator[None]:
        """Hold the entry's lock. Raises WriteError, beginning with `problem`, if the cache cannot be written."""
        with contextlib.ExitStack() as stack:
            try:
                with self._writing():
                    entry.parent.mkdir(parents=True, exist_ok=True)
                    lock, busy = entry.with_name(f"{entry.name}.lock"), f"the cache entry {entry} is being built"
                    stack.enter_context(locked(lock, busy, wait=True))
            except WriteError as e:
                also = f"{problem}, and " if problem else ""
                raise WriteError(f"{also}the cache directory {e.message}", hint=e.hint) from e
            yield


def partial_name(entry: Path) -> Path:
    """A new path beside an entry for a directory that is being written or deleted."""
    return entry.with_name(f"{entry.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
