"""Records which runs depend on which cache entries, so that `smollm3 cache clean` does not delete a run's base.

A run that loads its base from the cache (a converted file, a base that was quantized first) names these entries in
`cache.json` in its directory, and each entry's `.runs` file names the run's directory. `cache.json` decides: a run
that was deleted, or that no longer names the entry, keeps nothing. Tokenized rows are not recorded, because they are
made again from the rows in seconds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from smollm3_finetune.cache.store import Cache
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.writing import write_text

USES = "cache.json"
NOT_KEPT = ("tokens",)
"""Kinds of entries that are not kept for a run."""


def record_uses(run: Path, cache: Cache) -> None:
    """Record the cache entries of a run's base, in the run and in the entries; entries of an earlier start are kept.

    A file that cannot be written does not stop a run.
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


def forget_run(run: Path) -> None:
    """Remove a run, whose directory is about to be deleted, from the `.runs` files of its entries.

    What fails is left: a run without `cache.json` keeps nothing.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        root, line = Path(load_json(run / USES)["root"]), str(run.resolve())
        for name in uses_of(run):
            kind, _, key = name.partition("/")
            if not kind.isidentifier() or not key.isalnum():
                continue
            file = runs_file(root / kind / key)
            known = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
            if line in known:
                write_text(file, "".join(f"{other}\n" for other in known if other != line))


def name_of(entry: Path) -> str:
    """`gguf/0123…`"""
    return f"{entry.parent.name}/{entry.name}"


def runs_file(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.runs")


def uses_of(run: Path) -> list[str]:
    """The entries that a run names; empty if it names none or its file is damaged."""
    try:
        entries = load_json(run / USES)["entries"]
        return [str(e) for e in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def keeping(entry: Path, elsewhere: Iterable[Path] = ()) -> list[Path]:
    """The runs that depend on an entry: those of its `.runs` file and of `elsewhere` whose `cache.json` names it."""
    try:
        named = [Path(line) for line in runs_file(entry).read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError):
        named = []
    runs = {run.resolve(): None for run in (*named, *elsewhere)}
    return [run for run in runs if name_of(entry) in uses_of(run)]


def runs_below(folders: Iterable[Path]) -> Iterator[Path]:
    """The runs in each of the folders, and each folder that is a run itself."""
    for folder in folders:
        with contextlib.suppress(OSError):
            if (folder / USES).is_file():
                yield folder
            yield from (file.parent for file in sorted(folder.glob(f"*/{USES}")))
