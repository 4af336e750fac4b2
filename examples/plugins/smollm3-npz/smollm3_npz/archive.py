"""The archive: an array for each tensor and each file of a model. The zip format has a CRC-32 of each array."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import write_array

from smollm3_finetune.api import ModelError

FILE = "file/"
"""The names of arrays that hold files begin with it."""
Array = np.ndarray[Any, np.dtype[Any]]


def write_archive(path: Path, arrays: Iterable[tuple[str, Array]]) -> None:
    """Write arrays by name; memory holds one at a time. The same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays:
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:  # its date is 1980
                write_array(file, np.ascontiguousarray(array), allow_pickle=False)  # type: ignore[no-untyped-call]


@contextmanager
def open_archive(path: Path) -> Iterator[Any]:
    """A mapping of names to arrays. Raises ModelError, also inside the context, if the file is damaged."""
    try:
        with open(path, "rb") as raw, np.load(raw) as archive:
            archive[f"{FILE}config.json"]
            yield archive
    except (OSError, ValueError, KeyError, EOFError, IndexError, TypeError, zipfile.BadZipFile) as e:
        raise ModelError(f"the archive {path.name} cannot be read: {e}", hint="smollm3 export RUN --to npz") from e


def weights(archive: Any) -> Iterator[tuple[str, Array]]:
    return ((name, archive[name]) for name in archive if not name.startswith(FILE))
