"""The files of an export, as `export.json` lists them: one that is missing or cut off is an error."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.json import read_json
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.model_files.model_card import FILE as CARD
from smollm3_finetune.model_files.writing import EXPORT_FIGURES

TEXTS = re.compile(r"[^.]+|.*\.(json|md|txt|jinja|py|yaml|yml)")
"""Names of files that users edit after an export, so that their sizes may differ; a name without a suffix too."""


@dataclass(frozen=True)
class ExportedFiles:
    """What `export.json` says about a directory."""

    sizes: Mapping[str, int]
    """Bytes of each file, by its name relative to the directory."""
    is_adapter: bool
    """Whether it is an adapter alone."""
    exporter: str
    """The name of the exporter."""

    @classmethod
    def read(cls, directory: Path) -> ExportedFiles | None:
        """None if no export wrote the directory. Raises ModelError if `export.json` is damaged."""
        path = directory / EXPORT_FIGURES
        if not path.is_file():
            return None
        about = read_json(path)
        sizes = about.get("files")
        if not isinstance(sizes, dict) or not sizes or not all(_is_listed(*item) for item in sizes.items()):
            raise ModelError(f"{path} does not list the files of the export", hint=_again("NAME", "DIR"))
        is_adapter = about.get("adapter") is not None and about.get("merge") is None
        return cls(sizes, is_adapter, str(about.get("exporter") or "NAME"))

    def check(self, directory: Path) -> list[str]:
        """Notes on files that were edited. Raises ModelError if one is missing, or is not of the size that it had."""
        notes = []
        for name, size in self.sizes.items():
            file = directory / name
            if name == CARD:
                continue
            if not file.is_file():
                raise self._partial(directory, f"{name} is missing")
            if (found := file.stat().st_size) == size:
                continue
            if not TEXTS.fullmatch(file.name) or (file.suffix == ".json" and not _is_json(file)):
                raise self._partial(directory, f"{name} has {found:,} bytes instead of {size:,}")
            notes.append(f"{name} was edited after the export, which verified it")
        return notes

    def _partial(self, directory: Path, what: str) -> ModelError:
        return ModelError(
            f"the export in {directory} is not complete: {what}",
            hint=f"copy the whole directory, or {_again(self.exporter, f'{directory}-2')}",
        )


def _is_listed(name: Any, size: Any) -> bool:
    inside = isinstance(name, str) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    return inside and isinstance(size, int) and not isinstance(size, bool)


def _is_json(file: Path) -> bool:
    """Whether a JSON file was edited, not cut off."""
    with contextlib.suppress(OSError, ValueError):
        load_json(file)
        return True
    return False


def _again(exporter: str, output: str) -> str:
    return f"export again: smollm3 export RUN --to {shlex.quote(exporter)} --output {shlex.quote(output)}"
