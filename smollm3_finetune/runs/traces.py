"""Which directories are runs, by the names of their files. Imports only the standard library: completion uses it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

LOCK = ".smollm3-lock"
OURS = {LOCK, "versions.json", "metrics.jsonl", "before.json", "trained.json", "report.json", "error.json", "adapter",
        "checkpoints"}  # fmt: skip
"""Any of these beside run.yaml makes a directory a run; a run.yaml alone may be the user's own configuration."""
TRACES = {"metrics.jsonl", "before.json", "trained.json", "report.json"}
"""Any of these beside versions.json is a run whose run.yaml is missing."""


def is_run(names: set[str]) -> bool:
    """Whether a directory with these entries is a run, perhaps a damaged one."""
    return bool(names & OURS) if "run.yaml" in names else "versions.json" in names and bool(names & TRACES)


def run_folders(folder: str) -> Iterator[str]:
    """The directory of every run in or below a folder, or the folder itself if it is a run.

    Directories inside a run are not searched, nor hidden ones. A directory that cannot be read is skipped; one that
    several links lead to is searched once.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        names: set[str] = set()
        inside: list[str] = []
        with contextlib.suppress(OSError):
            about = os.stat(here)
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    names.add(entry.name)
                    if not entry.name.startswith(".") and entry.is_dir():
                        inside.append(os.path.join(here, entry.name))
        if is_run(names):
            yield here
        else:
            waiting += inside
