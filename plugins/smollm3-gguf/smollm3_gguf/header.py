"""The header of a GGUF file: metadata and the table of tensors, without the tensors.

`gguf.GGUFReader` is not used because it creates a NumPy array for every token: 7 s for a vocabulary of 49,152. This
reader skips the tokens and takes a tenth of a second. Imports only the standard library.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MAGIC = b"GGUF"
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Number of every metadata type of fixed size to its `struct` format."""
STRING, ARRAY = 8, 9
LIMIT = 1 << 26
"""Upper limit of lengths and counts in a valid header; a larger value means that the file is corrupt."""


class BadHeader(ValueError):
    """The bytes are not a valid GGUF header. The message completes "FILE …"."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Shape, type and position of one tensor."""

    shape: tuple[int, ...]
    """Outermost dimension first, as in torch; (out, in) for a linear layer."""
    ggml_type: int
    offset: int
    """Bytes from the start of the data section."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The part of a GGUF file before the weights."""

    metadata: Mapping[str, Any]
    """Scalars and strings unchanged, arrays of numbers as lists, arrays of strings as their length or as lists."""
    tensors: Mapping[str, TensorInfo]
    data_start: int
    """Offset of the data section in the file, in bytes."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture: `llama`, `qwen2`, …"""
        return str(self.metadata["general.architecture"])


class _Stream:
    def __init__(self, stream: BinaryIO, strings: bool) -> None:
        self.stream = stream
        self.strings = strings

    def take(self, n: int) -> bytes:
        data = self.stream.read(n) if n <= LIMIT else b""
        if len(data) != n:
            raise BadHeader("is truncated or corrupt inside its header")
        return data

    def number(self, fmt: str) -> Any:
        return struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0]

    def count(self) -> int:
        value: int = self.number("<Q")
        if value > LIMIT:
            raise BadHeader("is corrupt inside its header")
        return value

    def text(self) -> str:
        return self.take(self.count()).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise BadHeader(f"has a metadata value of the unknown type {kind}")
        kind, length = self.number("<I"), self.count()
        if kind == STRING:  # a vocabulary
            if self.strings:
                return [self.text() for _ in range(length)]
            for _ in range(length):
                self.take(self.count())
            return length
        if kind not in SCALARS:
            raise BadHeader(f"has a metadata array of the unsupported type {kind}")
        data = self.take(length * struct.calcsize(SCALARS[kind]))
        return list(struct.unpack(f"<{length}{SCALARS[kind][1]}", data))


def read_header(stream: BinaryIO, *, strings: bool = False) -> Header:
    """Read the header of an open GGUF file; `strings` reads arrays of strings too, such as the tokens.

    Raises BadHeader if it is not valid.
    """
    s = _Stream(stream, strings)
    magic = stream.read(4)
    if magic != MAGIC:
        raise BadHeader(f"is not a GGUF file: it starts with {magic!r} instead of {MAGIC!r}")
    version = s.number("<I")
    if version not in (2, 3):
        raise BadHeader(f"is of GGUF version {version}; only versions 2 and 3 can be read")
    tensor_count, metadata_count = s.count(), s.count()
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = s.text()
        metadata[key] = s.value(s.number("<I"))
    if "general.architecture" not in metadata:
        raise BadHeader("does not state its architecture (general.architecture)")
    tensors: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        name = s.text()
        dims = [s.count() for _ in range(min(s.number("<I"), 8))]  # stored with the fastest-varying dimension first
        tensors[name] = TensorInfo(shape=tuple(reversed(dims)), ggml_type=s.number("<I"), offset=s.number("<Q"))
    alignment = int(metadata.get("general.alignment", 32)) or 32
    data_start = -(-stream.tell() // alignment) * alignment
    return Header(metadata=metadata, tensors=tensors, data_start=data_start)
