"""The lock of this environment: one command at a time changes its plugins."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator

from smollm3_finetune.cache.store import default_root
from smollm3_finetune.files.locks import locked


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the lock, so that no other `plugins install`, `upgrade` or `uninstall` changes the environment."""
    root = default_root()
    root.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    with locked(root / f"install-{key}.lock", "another command changes the plugins of this environment", remove=True):
        yield
