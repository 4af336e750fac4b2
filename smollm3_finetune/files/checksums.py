"""Checksums of the files of a directory: written with them, compared when they are read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.writing import write_text

LONGEST = 255
"""Characters of a path below the directory that is looked for: each file system takes at least these."""
CHECKSUMS = "checksums.json"
"""In the directory: the SHA-256 of each file, by its path relative to the directory."""
THREADS = 8
SETTLED = 2.0
"""Seconds after which a changed file certainly has another time of change, whatever the file system's resolution."""

_known: dict[tuple[int, int, int, int], str] = {}
"""Checksums that this process computed, by device, inode, size and time of change."""


def write_checksums(directory: Path, *, file: Path | None = None, without: Collection[str] = ()) -> None:
    """Write the checksums of all files below `directory` to `file`, by default `checksums.json` in the directory.

    Files of the names in `without`, which a user may edit, are not included.
    """
    place = file or directory / CHECKSUMS
    names = [name for name in _names(directory) if name not in (CHECKSUMS, *without)]
    sums = dict(zip(names, _digests(directory / name for name in names), strict=True))
    if failed := next((digest for digest in sums.values() if isinstance(digest, OSError)), None):
        raise failed
    write_text(place, json.dumps({"sha256": sums}, indent=2) + "\n")


def damage(directory: Path, *, file: Path | None = None) -> str | None:
    """What differs from the checksums of a directory, such as `model.safetensors differs from its checksum`.

    None if nothing differs, or if there are no checksums: adapters of other tools have none. Files without a
    checksum are not examined. A process reads each file once, unless the file changes.
    """
    place = file or directory / CHECKSUMS
    try:
        sums = load_json(place)["sha256"]
        if not all(isinstance(name, str) and isinstance(digest, str) for name, digest in sums.items()):
            raise TypeError("sha256 must map names to checksums")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{place.name} cannot be read"
    for name in sums:
        if len(name) > LONGEST or not _inside(name) or not (directory / name).is_file():
            return f"{name[:LONGEST]} is missing"
    for name, found in zip(sums, _digests(directory / name for name in sums), strict=True):
        if isinstance(found, OSError):
            return f"{name} cannot be read: {found.strerror}"
        if found != sums[name]:
            return f"{name} differs from its checksum"
    return None


def _digests(paths: Iterable[Path]) -> list[str | OSError]:
    """The checksum of each file, or why it cannot be read; several files are read at the same time."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str | OSError:
    try:
        about = path.stat()
        key = (about.st_dev, about.st_ino, about.st_size, about.st_ctime_ns)
        if key in _known:
            return _known[key]
        digest = file_sha256(path)
    except OSError as e:
        return e
    if time.time() - about.st_ctime > SETTLED:  # a later change within the resolution would not be seen
        _known[key] = digest
    return digest


def _inside(name: str) -> bool:
    """Whether a relative path stays in its directory."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def _names(directory: Path) -> Iterator[str]:
    """The regular files below a directory, relative to it, sorted."""
    found = []
    for folder, _, files in os.walk(directory):
        found += [(Path(folder) / f).relative_to(directory).as_posix() for f in files]
    yield from sorted(name for name in found if not (directory / name).is_symlink())
