"""Edits a written GGUF file in place, to inject faults that a conversion could have made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from smollm3_gguf.header import read_header
from smollm3_gguf.reading import FileTensors


def edit_rows(file: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the bytes of a tensor, one row for each of its rows, by what `change` returns for them."""
    with file.open("rb") as stream:
        header = read_header(stream)
    tensors = FileTensors(file, header)
    rows = np.array(tensors.stored(name))
    changed = np.ascontiguousarray(change(rows))
    assert changed.shape == rows.shape
    assert not np.array_equal(changed, rows)
    with file.open("r+b") as stream:
        stream.seek(header.data_start + header.tensors[name].offset)
        stream.write(changed.tobytes())


def rows_of(file: Path, name: str) -> np.ndarray:
    """The bytes of a tensor, one row for each of its rows."""
    with file.open("rb") as stream:
        return np.array(FileTensors(file, read_header(stream)).stored(name))


def edit_text(file: Path, old: str, new: str) -> None:
    """Replace a text that occurs once in the metadata by one of the same length."""
    content, was, becomes = file.read_bytes(), old.encode(), new.encode()
    assert content.count(was) == 1, old
    assert len(was) == len(becomes)
    file.write_bytes(content.replace(was, becomes))


def swap_texts(file: Path, first: str, second: str) -> None:
    """Exchange two texts of the metadata that have the same length, such as two tokens."""
    content = file.read_bytes()
    a, b = (len(text.encode()).to_bytes(8, "little") + text.encode() for text in (first, second))
    assert len(a) == len(b)
    assert content.count(a) == content.count(b) == 1
    file.write_bytes(content.replace(a, b"\0" * len(a)).replace(b, a).replace(b"\0" * len(a), b))
