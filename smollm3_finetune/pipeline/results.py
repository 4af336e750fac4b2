"""What a finished stage has made, by content: a stage whose files were changed or deleted is run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.model.saved_adapter import EDITABLE
from smollm3_finetune.model_files.exported import ExportedFiles
from smollm3_finetune.model_files.writing import EXPORT_FIGURES, FIGURES
from smollm3_finetune.runs.rundir import RunDir

EVALUATION = "eval.json"
"""The report of an eval stage, in its directory."""


DONE = {
    "train": "report.json", "merge": FIGURES, "quantize": "config.json", "export": EXPORT_FIGURES, "eval": EVALUATION,
}  # fmt: skip
"""The file of each kind of stage that is only there when its work is complete."""


def is_complete(kind: str, directory: Path) -> bool:
    """Whether the work of a stage is complete: what it wrote appears whole, and the report of a run is written last."""
    return (directory / DONE[kind]).is_file()


def model_in(directory: Path) -> Path:
    """The model that a later stage takes from a finished one: its directory, or the largest file of an export.

    Raises ModelError if `export.json` is damaged.
    """
    exported = ExportedFiles.read(directory)
    if exported is None or (directory / "config.json").is_file():
        return directory
    return directory / max(exported.sizes, key=lambda name: exported.sizes[name])


def files_of(kind: str, directory: Path) -> Iterator[Path]:
    """The files that later stages read: the adapter of a run and its own base, a model without its card, a report."""
    if kind == "eval":
        yield directory / EVALUATION
        return
    places = (RunDir(directory).adapter, RunDir(directory).base) if kind == "train" else (directory,)
    yield from sorted(p for place in places for p in place.rglob("*") if p.is_file() and p.name not in EDITABLE)


def measured(kind: str, directory: Path) -> dict[str, Any]:
    """Size, time of change and SHA-256 of each file, by its path below the directory."""
    found = {}
    for file in files_of(kind, directory):
        about = file.stat()
        found[file.relative_to(directory).as_posix()] = [about.st_size, about.st_mtime_ns, file_sha256(file)]
    return found


def difference(directory: Path, recorded: Mapping[str, Any]) -> str | None:
    """The first file that is missing or has another content, as a clause; None if there is none.

    The content is read only if size or time of change differ.
    """
    if not recorded:
        return "its files were not recorded"
    for name, (size, changed, digest) in recorded.items():
        file = directory / name
        if not file.is_file():
            return f"{name} is missing"
        about = file.stat()
        if about.st_size != size or (about.st_mtime_ns != changed and file_sha256(file) != digest):
            return f"{name} was changed"
    return None
