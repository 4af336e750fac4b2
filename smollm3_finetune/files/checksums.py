"""Checksums of the files of a directory: written with them, compared when they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.writing import write_text

CHECKSUMS = "checksums.json"
"""In the directory: the SHA-256 of each file, by its path relative to the directory."""


def write_checksums(directory: Path, *, file: Path | None = None, without: Collection[str] = ()) -> None:
    """Write the checksums of all files below `directory` to `file`, by default `checksums.json` in the directory.

    Files of the names in `without`, which a user may edit, are not included.
    """
    place = file or directory / CHECKSUMS
    sums = {name: file_sha256(directory / name) for name in _names(directory) if name not in (CHECKSUMS, *without)}
    write_text(place, json.dumps({"sha256": sums}, indent=2) + "\n")


def damage(directory: Path, *, file: Path | None = None) -> str | None:
    """What differs from the checksums of a directory, such as `model.safetensors differs from its checksum`.

    None if nothing differs, or if there are no checksums: versions before 0.2 did not write them. Files without a
    checksum are not examined.
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
    for name, digest in sums.items():
        path = directory / name
        if not _inside(name) or not path.is_file():
            return f"{name} is missing"
        if file_sha256(path) != digest:
            return f"{name} differs from its checksum"
    return None


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
