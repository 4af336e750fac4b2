"""Directories that `datasets` wrote: by `save_to_disk`, one dataset or one for each split, and its cache."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smollm3_finetune.config.yaml12 import dump_yaml
from smollm3_finetune.errors import DataError
from smollm3_finetune.files.limits import load_json

STATE, SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"


def saved_files(directory: Path, text: str, split: str) -> Sequence[Path] | None:
    """The Arrow files with the rows of a saved dataset, in order; None if `datasets` did not write the directory.

    `text` is the path as the user gave it. If there are splits, the files are those of `split`. Raises DataError if
    there is no such split, or if a file is missing or invalid.
    """
    if (directory / SPLITS).is_file():
        names = _value(directory / SPLITS, "splits", list)
        if split not in names:
            raise _no_split(text, split, names)
        return _state_files(directory / split)
    if (directory / STATE).is_file():
        return _state_files(directory)
    if (directory / INFO).is_file():
        return _cached_files(directory, text, split)
    return None


def _state_files(directory: Path) -> Sequence[Path]:
    """The files of one dataset that was saved by `save_to_disk`."""
    state = directory / STATE
    if _load(state).get("_indices_data_files"):  # written by datasets before 2.0
        raise DataError(
            f"{state}: the dataset selects rows by an index file, which is not supported",
            hint="save it again with a newer version of datasets: load_from_disk(A).flatten_indices().save_to_disk(B)",
        )
    files = []
    for entry in _value(state, "_data_files", list):
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{state}: expected the name of a file in this directory, found {entry!r:.80}")
        if not (directory / name).is_file():
            raise DataError(
                f"{directory / name} is missing, although {state} lists it", hint="copy the directory again"
            )
        files.append(directory / name)
    if not files:
        raise DataError(f"{directory} contains no rows: {state} lists no file")
    return files


def _cached_files(directory: Path, text: str, split: str) -> Sequence[Path] | None:
    """The files of one split in the cache of `datasets`, where each is named `NAME-SPLIT.arrow`; None if there is none.

    The results of `map` and `filter`, which are called `cache-….arrow`, are not rows of the dataset.
    """
    splits: dict[str, list[Path]] = {}
    for file in sorted(directory.glob("*.arrow")):
        match = re.fullmatch(r".+?-([^-]+?)(-\d{5}-of-\d{5})?", file.stem)
        if match is not None and not file.name.startswith("cache-"):
            splits.setdefault(match[1], []).append(file)
    if splits and split not in splits:
        raise _no_split(text, split, list(splits))
    return splits.get(split)


def _no_split(text: str, split: str, names: Sequence[str]) -> DataError:
    found = ", ".join(map(repr, names)) or "none"
    entry = dump_yaml({"path": text, "split": names[0]}, flow=True).strip() if names else ""
    hint = f"--set {shlex.quote(f'data.path={entry}')}" if names else None
    return DataError(f"the dataset {text!r} has no split {split!r}; its splits: {found}", hint=hint)


def _load(file: Path) -> dict[str, Any]:
    try:
        value = load_json(file)
    except (OSError, ValueError) as e:
        raise DataError(f"{file} cannot be read: {getattr(e, 'strerror', None) or e}") from e
    return value if isinstance(value, dict) else {}


def _value(file: Path, key: str, kind: type) -> Any:
    value = _load(file).get(key)
    if not isinstance(value, kind):
        raise DataError(f"{file} does not describe a dataset: expected a list in {key!r}, found {value!r:.80}")
    return value
