"""What is published of a directory: the files that a saved adapter or a model consists of, and no others.

The files are listed by what each kind of directory consists of, so that a file of another purpose is left out whatever
its name is: rows, samples, reports, optimizer states, notes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.checksums import CHECKSUMS
from smollm3_finetune.files.json import names_code, read_json
from smollm3_finetune.files.limits import not_regular
from smollm3_finetune.files.partial import PARTIAL
from smollm3_finetune.model.saved_adapter import CALIBRATION
from smollm3_finetune.model.saved_adapter import FILE as DESCRIPTION
from smollm3_finetune.model_files.exported import ExportedFiles
from smollm3_finetune.model_files.model_card import FILE as CARD
from smollm3_finetune.model_files.model_card import is_ours
from smollm3_finetune.model_files.writing import BELONGS, CODE_NAMES, EXPORT_FIGURES, FIGURES
from smollm3_finetune.runs.best import MEASURED

ADAPTER, MODEL, MERGED, QUANTIZED = "adapter", "model", "merged model", "quantized checkpoint"
EXPORTED, EXPORTED_ADAPTER = "exported model", "exported adapter"
WEIGHTS = (".safetensors", ".gguf")
"""The suffixes of weight files, those of exported models included."""
OF_A_MODEL = re.compile(
    rf"[\w.-]+({'|'.join(map(re.escape, WEIGHTS))})|[\w.-]+\.safetensors\.index\.json|[\w.-]*config\.json"
    rf"|{re.escape(FIGURES)}|{re.escape(CARD)}|{BELONGS.pattern}"
)
"""The files of a model, and of an adapter that has no list of its files."""
STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args|trainer_state)[\w-]*\.(pt|pth|bin|pkl|json)")
ROWS = re.compile(r".*\.(jsonl|csv|tsv|parquet|arrow)(\.\w+)?", re.IGNORECASE)
HIDDEN = re.compile(r"\..*")
SECRET = re.compile(r".*\.(env|pem|key|p12|pfx)|id_(rsa|dsa|ecdsa|ed25519).*", re.IGNORECASE)
LICENSE = re.compile(r"(LICENSE|NOTICE|COPYING)[\w.-]*")
REPORTS = re.compile(r"(report|metrics|before|after|trained|error|versions|cache)\.(json|html)|run\.yaml|samples\..*")
NEVER: Mapping[re.Pattern[str], str] = {
    STATE: "the state of a training run",
    ROWS: "rows",
    HIDDEN: "a hidden file",
    SECRET: "may be a secret",
}
"""Why files with these names are not published, whatever lists them."""
OF_A_RUN: Mapping[str, str] = {
    "checkpoints": "optimizer states",
    "run.yaml": "may contain paths of this machine",
    "versions.json": "may contain paths of this machine",
    "cache.json": "paths of this machine",
    CALIBRATION: "training rows",
    "report.json": "sample answers",
    "report.html": "sample answers and rows",
    "samples.jsonl": "sample answers",
    "before.json": "sample answers",
    "after.json": "losses of single rows",
    "data.json": "training rows",
    "origins.json": "may contain paths of this machine",
    "warnings.jsonl": "may contain paths of this machine",
}
"""Why files of a run are not published."""


@dataclass(frozen=True)
class LeftOut:
    """A file or directory that is not published."""

    name: str
    why: str


@dataclass(frozen=True)
class Contents:
    """The files of a directory, as names relative to it."""

    kind: str
    directory: Path
    names: list[str]
    left_out: list[LeftOut]


def kind_of(directory: Path) -> str | None:
    """What a directory contains; None if it is nothing that this package writes."""
    if (directory / DESCRIPTION).is_file():
        return ADAPTER
    if (directory / FIGURES).is_file():
        return QUANTIZED if read_json(directory / FIGURES).get("requantized") else MERGED
    if (exported := ExportedFiles.read(directory)) is not None:
        return EXPORTED_ADAPTER if exported.is_adapter else EXPORTED
    if not is_ours(directory):
        return None
    if (directory / "config.json").is_file():
        return QUANTIZED if read_json(directory / "config.json").get("quantization_config") else MODEL
    return MODEL if any(file.suffix in WEIGHTS for file in directory.iterdir()) else None


def contents(directory: Path, kind: str) -> Contents:
    """The files that are published of a directory of this kind. Raises ModelError if one of them is a link out of it.

    The files of an adapter are those of its `checksums.json`, which was written with them, and the files of an export
    are those of its `export.json`; without a list, they are those whose names belong to a model.
    """
    listed = _listed(directory, kind)
    has_code = any(names_code(read_json(directory / n)) for n in CODE_NAMES if (directory / n).is_file())
    names, left_out = [], []
    for name in _files(directory):
        why = _why_left_out(directory, name, listed, has_code)
        if why is None:
            _check_file(directory, name)
            names.append(name)
        else:
            left_out.append(LeftOut(name, why))
    return Contents(kind, directory, names, left_out)


def left_of_run(run: Path, published: str) -> list[LeftOut]:
    """The files and directories of a run beside the one that is published."""
    found = []
    for entry in sorted(run.iterdir()):
        if entry.name != published and not entry.name.startswith(PARTIAL):
            other = "a separate model" if kind_of_or_none(entry) else "not part of the adapter"
            found.append(LeftOut(f"{entry.name}{'/' if entry.is_dir() else ''}", OF_A_RUN.get(entry.name, other)))
    return found


def kind_of_or_none(entry: Path) -> str | None:
    """`kind_of` of a directory; None for a file, and for a directory whose description is damaged."""
    try:
        return kind_of(entry) if entry.is_dir() and not entry.is_symlink() else None
    except ModelError:
        return None


def _why_left_out(directory: Path, name: str, listed: set[str] | None, has_code: bool) -> str | None:
    """Why a file is not published; None if it is."""
    last = name.rpartition("/")[2]
    if not name.isprintable() or not _is_unicode(name):
        return "its name has characters that cannot be published"
    if any(part.startswith(PARTIAL) for part in name.split("/")):
        return "incomplete"
    for pattern, why in NEVER.items():
        if pattern.fullmatch(last):
            return why
    if REPORTS.fullmatch(last) or last in (CALIBRATION, MEASURED):
        return "a file of a training run"
    if name in (CHECKSUMS, CARD) or LICENSE.fullmatch(name):
        return None
    if listed is not None:
        of, file = ("adapter", CHECKSUMS) if EXPORT_FIGURES not in listed else ("export", EXPORT_FIGURES)
        return None if name in listed else f"not part of the {of}: not in {file}"
    if "/" in name or not OF_A_MODEL.fullmatch(name):
        return None if name == DESCRIPTION else "not a file of a model"
    if name.endswith(".py") and not has_code:
        return "code that no configuration file of the model refers to"
    return None


def _files(directory: Path) -> Iterator[str]:
    """The entries below a directory that are not directories, relative to it; links are not followed."""
    found = []
    for folder, inner, files in os.walk(directory):
        linked = [name for name in inner if os.path.islink(os.path.join(folder, name))]
        found += [(Path(folder) / name).relative_to(directory).as_posix() for name in (*files, *linked)]
    yield from sorted(found)


def _check_file(directory: Path, name: str) -> None:
    """Raises ModelError unless a file is a regular file inside of its directory."""
    file = directory / name
    if not file.resolve().is_relative_to(directory.resolve()):
        raise ModelError(
            f"{file} is a link to a file outside of {directory}, which is not published",
            hint="to publish it, replace the link with a copy of the file",
        )
    if kind := not_regular(file):
        raise ModelError(f"{file} is {kind}, not a file", hint="replace it with the file")
    if not file.is_file():
        raise ModelError(f"{file} is a link to a file that does not exist", hint="replace the link with the file")


def _listed(directory: Path, kind: str) -> set[str] | None:
    """The names in `checksums.json` or `export.json`; None if there is no list. It was compared with the files before.

    A quantized checkpoint or another model has none.
    """
    if kind in (EXPORTED, EXPORTED_ADAPTER) and (exported := ExportedFiles.read(directory)) is not None:
        return {*exported.sizes, EXPORT_FIGURES}
    if kind != ADAPTER or not (directory / CHECKSUMS).is_file():
        return None
    return set(read_json(directory / CHECKSUMS)["sha256"])


def _is_unicode(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes of a file system that are not valid UTF-8
        return False
    return True
