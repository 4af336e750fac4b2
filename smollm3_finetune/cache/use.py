"""Which runs depend on which entries of the cache, so that `smollm3 cache clean` does not take a run's base away.

A run that loads its base through the cache (a converted file, a base that was quantized first) names these entries in
`cache.json` in its directory, and each entry's `.runs` file names the run's directory. The run's own word decides:
a directory that is gone, or that no longer names the entry, keeps nothing. Tokenized rows are not among them, because
they are made again from the rows in seconds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from smollm3_finetune.cache.store import Cache

USES = "cache.json"
NOT_KEPT = ("tokens",)
"""Kinds that a run does without."""


def record_uses(run: Path, cache: Cache) -> None:
    """Write down, on both sides, what a run's base was made of; beside what the run named before it was resumed.

    A file that cannot be written is no reason to stop a run.
    """
    entries = [e for e in cache.used if e.parent.name not in NOT_KEPT and e.is_dir()]
    if not entries:
        return
    names = list(dict.fromkeys([*uses_of(run), *(name_of(e) for e in entries)]))
    with contextlib.suppress(OSError):
        about = {"root": str(cache.root.resolve()), "entries": names}
        (run / USES).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    for entry in entries:
        with contextlib.suppress(OSError):
            file, line = runs_file(entry), str(run.resolve())
            known = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            if line not in known:
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(f"{line}\n")


def name_of(entry: Path) -> str:
    """`gguf/0123…`"""
    return f"{entry.parent.name}/{entry.name}"


def runs_file(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.runs")


def uses_of(run: Path) -> list[str]:
    """The entries that a run names; none where it names none or its file is damaged."""
    try:
        entries = json.loads((run / USES).read_text(encoding="utf-8"))["entries"]
        return [str(e) for e in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def keeping(entry: Path, elsewhere: Iterable[Path] = ()) -> list[Path]:
    """The runs that depend on an entry: those in its `.runs` file, and those of `elsewhere`, that still say so."""
    try:
        named = [Path(line) for line in runs_file(entry).read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError):
        named = []
    runs = {run.resolve(): None for run in (*named, *elsewhere)}
    return [run for run in runs if name_of(entry) in uses_of(run)]


def runs_below(folders: Iterable[Path]) -> Iterator[Path]:
    """The runs in each of some folders, or the folder itself where it is one."""
    for folder in folders:
        with contextlib.suppress(OSError):
            if (folder / USES).is_file():
                yield folder
            yield from (file.parent for file in sorted(folder.glob(f"*/{USES}")))
