"""A content-addressed cache of derived checkpoints: entries appear whole or not at all, one process builds.

Loaders that convert (gguf) and quantizers that write checkpoints use it through `BuildContext.cache`. An entry's
name is a hash of everything that decides its content, so entries never go stale; they only become unused.

    <root>/<kind>/<key>/          the entry, as `build` left it
    <root>/<kind>/<key>.json      what it was made from, readable; as old as the entry's last use
    <root>/<kind>/<key>.lock      held while it is built or taken away; its holder alone touches the entry
    <root>/<kind>/<key>.runs      the runs that depend on it, a directory a line (see `use.py`)
    <root>/<kind>/<key>.partial-* a build under way, or what a killed one left; swept by the next build
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
from smollm3_finetune.paths import user_path

HINT = "set SMOLLM3_CACHE=DIR to a directory that can be written"


def default_root() -> Path:
    """`$SMOLLM3_CACHE`, `~` resolved, else `$XDG_CACHE_HOME/smollm3`, else `~/.cache/smollm3`.

    Raises ConfigError where there is no home directory, or where the system refuses to look.
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
            raise ConfigError("the cache has no place: there is no home directory", hint=HINT) from e
    return Path(base) / "smollm3"


@dataclass(frozen=True)
class Cache:
    """A directory of finished entries."""

    root: Path
    used: dict[Path, None] = field(default_factory=dict, compare=False, repr=False)
    """The entries that were found or built through this object, in that order."""

    @classmethod
    def default(cls) -> Cache:
        """The user's own. Whether it can be looked at matters once something is looked for: not every run does."""
        return cls(_root())

    def location(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Where the entry of `key` lies, or will lie."""
        return self.root / kind / fingerprint(key)

    def find(self, kind: str, key: Mapping[str, Any]) -> Path | None:
        """The finished entry of `key`, or None."""
        entry = self.location(kind, key)
        return entry if self._has(entry) else None

    def get_or_build(self, kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """The entry of `key`, made by `build(empty directory)` where it is not there yet.

        `key` is JSON-like and names everything that decides the content, versions of the tools included. Of
        several processes one builds and the others wait. A build that raises or is killed leaves no entry.
        """
        entry = self.location(kind, key)
        if self._has(entry):
            return self._use(entry)
        with self._locked(entry):
            if entry.is_dir():  # built while we waited
                return self._use(entry)
            for left in entry.parent.glob(f"{entry.name}.partial-*"):
                shutil.rmtree(left, ignore_errors=True)
            partial = entry.with_name(f"{entry.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
            partial.mkdir()
            try:
                build(partial)
                about = json.dumps(dict(key), indent=2, sort_keys=True)
                entry.with_name(f"{entry.name}.json").write_text(about + "\n", encoding="utf-8")
                partial.rename(entry)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return self._use(entry)

    def _has(self, entry: Path) -> bool:
        """Whether an entry is finished. Raises SmolLM3Error where the system refuses to look."""
        try:
            return entry.is_dir()
        except OSError as e:
            raise SmolLM3Error(f"the cache directory {self.root} cannot be looked at: {e.strerror}", hint=HINT) from e

    def _use(self, entry: Path) -> Path:
        """Note that an entry is used, and when: the age of its `.json`."""
        self.used[entry] = None
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(entry.with_name(f"{entry.name}.json"))
        return entry

    def drop(self, kind: str, key: Mapping[str, Any]) -> None:
        """Take an entry away, as one does that turns out to be damaged; the next build makes it again."""
        entry = self.location(kind, key)
        with self._locked(entry):
            if entry.is_dir():
                gone = entry.with_name(f"{entry.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
                entry.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def _locked(self, entry: Path) -> Iterator[None]:
        """Hold the entry's lock. Raises SmolLM3Error where the cache cannot be written."""
        from filelock import FileLock

        lock = FileLock(f"{entry}.lock")
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as e:
            raise SmolLM3Error(
                f"the cache directory {self.root} cannot be written: {e.strerror}",
                hint=HINT,
            ) from e
        try:
            yield
        finally:
            lock.release()
