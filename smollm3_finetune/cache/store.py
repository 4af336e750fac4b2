"""A content-addressed cache of derived checkpoints: entries appear complete or not at all, and one process builds.

Loaders that convert (gguf) and quantizers that write checkpoints use it through `BuildContext.cache`. An entry's
name is a hash of everything that decides its content: entries never become outdated, only unused.

    <root>/<kind>/<key>/          the entry, as `build` left it
    <root>/<kind>/<key>.json      its key, readable; its modification time is the entry's last use
    <root>/<kind>/<key>.lock      held while the entry is built or deleted; only its holder changes the entry
    <root>/<kind>/<key>.runs      the runs that depend on it, one directory per line (see `use.py`)
    <root>/<kind>/<key>.partial-* a running build, or a leftover of a killed one; deleted by the next build
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.errors import ConfigError, SmolLM3Error
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.locks import locked
from smollm3_finetune.paths import user_path

HINT = "set SMOLLM3_CACHE=DIR to a writable directory"


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
    if own := os.environ.get("SMOLLM3_CACHE"):
        return user_path(own, "SMOLLM3_CACHE")
    if not (base := os.environ.get("XDG_CACHE_HOME")):
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError as e:
            raise ConfigError("the cache needs a home directory, but there is none", hint=HINT) from e
    return Path(base) / "smollm3"


@dataclass(frozen=True)
class Cache:
    """A directory of finished entries."""

    root: Path
    used: dict[Path, None] = field(default_factory=dict, compare=False, repr=False)
    """The entries that this object found or built, in that order."""

    @classmethod
    def default(cls) -> Cache:
        """The user's cache. Its directory is not checked until an entry is looked up: not every run needs it."""
        return cls(_root())

    def location(self, kind: str, key: Mapping[str, Any]) -> Path:
        """The path of the entry of `key`, whether or not it exists."""
        return self.root / kind / fingerprint(key)

    def find(self, kind: str, key: Mapping[str, Any]) -> Path | None:
        """The finished entry of `key`, or None."""
        entry = self.location(kind, key)
        return entry if self._has(entry) else None

    def get_or_build(self, kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """The entry of `key`, built by `build(empty directory)` if it does not exist yet.

        `key` is JSON-like and names everything that decides the content, including versions of tools. If
        several processes need it, one builds and the others wait. A build that raises or is killed leaves no entry.
        """
        entry = self.location(kind, key)
        if self._has(entry):
            return self._use(entry)
        with self._locked(entry):
            if entry.is_dir():  # built by another process while this one waited
                return self._use(entry)
            for leftover in entry.parent.glob(f"{entry.name}.partial-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            partial = entry.with_name(f"{entry.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
            try:
                with self._writing():
                    partial.mkdir()
                    build(partial)
                    about = json.dumps(dict(key), indent=2, sort_keys=True)
                    entry.with_name(f"{entry.name}.json").write_text(about + "\n", encoding="utf-8")
                    partial.rename(entry)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return self._use(entry)

    def _has(self, entry: Path) -> bool:
        """Whether an entry is finished. Raises SmolLM3Error if the cache directory cannot be read."""
        try:
            return entry.is_dir()
        except OSError as e:
            raise SmolLM3Error(f"the cache directory {self.root} cannot be read: {e.strerror}", hint=HINT) from e

    def _use(self, entry: Path) -> Path:
        """Record the use of an entry, and its time: the modification time of its `.json`."""
        self.used[entry] = None
        with contextlib.suppress(OSError):  # a read-only cache
            os.utime(entry.with_name(f"{entry.name}.json"))
        return entry

    def drop(self, kind: str, key: Mapping[str, Any]) -> None:
        """Delete an entry, for example a damaged one; the next `get_or_build` builds it again."""
        entry = self.location(kind, key)
        with self._locked(entry):
            if entry.is_dir():
                gone = entry.with_name(f"{entry.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
                entry.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Convert a failed write into a WriteError that names the cache directory."""
        return writing(self.root, left="finished entries are unchanged", elsewhere="SMOLLM3_CACHE=DIR")

    @contextmanager
    def _locked(self, entry: Path) -> Iterator[None]:
        """Hold the entry's lock. Raises WriteError if the cache cannot be written."""
        with self._writing():
            entry.parent.mkdir(parents=True, exist_ok=True)
        with locked(entry.with_name(f"{entry.name}.lock"), f"the cache entry {entry} is being built", wait=True):
            yield
