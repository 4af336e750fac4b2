"""Faults in exported files, each made by changing bytes of a file in place: llama.cpp's checks find them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smollm3_gguf.exporter import file_in
from smollm3_gguf.header import read_header
from smollm3_gguf.llama import checks_with_llama_cpp

from smollm3_finetune.api import BuildContext

Fault = Callable[[Path], None]


def tensor(file: Path, name: str) -> tuple[int, tuple[int, ...]]:
    """Position and shape of a float32 tensor."""
    with file.open("rb") as stream:
        header = read_header(stream)
    info = header.tensors[name]
    return header.data_start + info.offset, info.shape


def values(file: Path, name: str) -> np.ndarray:
    start, shape = tensor(file, name)
    return np.fromfile(file, np.float32, int(np.prod(shape)), offset=start).reshape(shape)


def put(file: Path, name: str, new: np.ndarray) -> None:
    with file.open("r+b") as stream:
        stream.seek(tensor(file, name)[0])
        stream.write(np.ascontiguousarray(new, np.float32).tobytes())


def replace(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert data.count(old) >= 1
    file.write_bytes(data.replace(old, new, 1))


def rows_as_in_transformers(name: str) -> Fault:
    """The rows of a projection of keys, 2 heads of 64, in transformers' order."""

    def fault(file: Path) -> None:
        k = values(file, name)
        put(file, name, k.reshape(2, 32, 2, -1).swapaxes(1, 2).reshape(k.shape))

    return fault


def swapped_head(file: Path) -> None:
    put(file, "output.weight", values(file, "token_embd.weight"))


def entry(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def shifted_token(file: Path) -> None:
    """Two tokens change places."""
    data, (one, other) = file.read_bytes(), (entry("Ġthe".encode()), entry("Ġand".encode()))
    first, second = data.index(one), data.index(other)
    assert len(one) == len(other)
    changed = bytearray(data)
    changed[first : first + len(one)], changed[second : second + len(one)] = other, one
    file.write_bytes(changed)


def other_pre_tokenizer(file: Path) -> None:
    replace(file, entry(b"smollm"), entry(b"falcon"))


def unknown_pre_tokenizer(file: Path) -> None:
    replace(file, entry(b"smollm"), entry(b"smol-x"))


def other_base(file: Path) -> None:
    """Another RoPE base."""
    data = bytearray(file.read_bytes())
    at = data.index(b"smollm3.rope.freq_base") + len("smollm3.rope.freq_base") + 4
    data[at : at + 4] = struct.pack("<f", 10001.0)
    file.write_bytes(data)


def other_rotated_width(file: Path) -> None:
    data = bytearray(file.read_bytes())
    at = data.index(b"smollm3.rope.dimension_count") + len("smollm3.rope.dimension_count") + 4
    data[at : at + 4] = struct.pack("<I", 32)
    file.write_bytes(data)


def not_a_number(file: Path) -> None:
    weight = values(file, "blk.1.ffn_up.weight")
    weight[3, 5] = np.nan
    put(file, "blk.1.ffn_up.weight", weight)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100000])


@pytest.mark.parametrize(
    ("name", "fault", "check", "says"),
    [
        ("nope", rows_as_in_transformers("blk.0.attn_k.weight"), "llama.cpp logits", "llama.cpp differs by"),
        ("nope", rows_as_in_transformers("blk.3.attn_k.weight"), "llama.cpp logits", "llama.cpp differs by"),
        ("untied", swapped_head, "llama.cpp logits", "llama.cpp differs by"),
        ("nope", other_base, "llama.cpp logits", "llama.cpp differs by"),
        ("nope", shifted_token, "llama.cpp tokens", "in the file"),
        ("nope", other_pre_tokenizer, "llama.cpp tokens", "under llama.cpp"),
        ("nope", unknown_pre_tokenizer, "llama.cpp", "unknown pre-tokenizer type: 'smol-x'"),
        ("nope", other_rotated_width, "llama.cpp", "it ended with SIGABRT"),
        ("nope", not_a_number, "llama.cpp", "blk.1.ffn_up.weight"),
        ("nope", truncated, "llama.cpp", "not within the file bounds"),
    ],
)
def test_a_fault_is_found(
    name: str,
    fault: Fault,
    check: str,
    says: str,
    exported: Any,
    subject: Any,
    context: Callable[..., BuildContext],
) -> None:
    out = exported(name, "f32")
    fault(file_in(out))
    failed = [c for c in checks_with_llama_cpp(subject(name), out, context()) if c.passed is False]
    assert [c.name for c in failed][:1] == [check], failed
    assert says in failed[0].says


def test_damaged_blocks_are_found_by_the_predictions(
    exported: Any, subject: Any, context: Callable[..., BuildContext]
) -> None:
    out = exported("tiny", "q4_0")
    file = file_in(out)
    with file.open("rb") as stream:
        header = read_header(stream)
    info = header.tensors["blk.0.ffn_down.weight"]
    with file.open("r+b") as stream:  # the first row takes the place of every other
        width = info.shape[1] // 32 * 18
        stream.seek(header.data_start + info.offset)
        first = stream.read(width)
        stream.seek(header.data_start + info.offset)
        stream.write(first * info.shape[0])
    checks = checks_with_llama_cpp(subject("tiny"), out, context())
    assert [c.name for c in checks if c.passed is False] == ["llama.cpp predictions"]
