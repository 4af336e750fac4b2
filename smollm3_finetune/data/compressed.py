"""Text files, plain or compressed with gzip or zstd, read as a stream: memory use does not grow with their size."""

from __future__ import annotations

import contextlib
import gzip
import io
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from smollm3_finetune.errors import DataError, MissingRequirementError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""The file extensions of compressed rows, and the name of each format."""


def compression(file: Path) -> str | None:
    """`gzip` or `zstd` for a file with that extension; None for any other."""
    return COMPRESSIONS.get(file.suffix)


@contextlib.contextmanager
def open_text(
    file: Path, *, encoding: str = "utf-8-sig", errors: str = "strict", newline: str | None = None
) -> Iterator[TextIO]:
    """The text of a file, decompressed while it is read.

    Raises DataError, also while the text is read, if a compressed file is damaged or truncated.
    """
    kind = compression(file)
    if kind is None:
        with file.open(encoding=encoding, errors=errors, newline=newline) as stream:
            yield stream
        return
    with _damage_named(file, kind), contextlib.closing(_decompressed(file, kind)) as raw:
        yield io.TextIOWrapper(io.BufferedReader(raw), encoding=encoding, errors=errors, newline=newline)


def _decompressed(file: Path, kind: str) -> Any:
    """A binary stream of the decompressed bytes."""
    if kind == "gzip":
        return gzip.open(file, "rb")
    import pyarrow

    if not pyarrow.Codec.is_available("zstd"):
        raise MissingRequirementError(
            f"{file} is compressed with zstd, which the installed pyarrow does not support", hint="pip install pyarrow"
        )
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(file)), "zstd")


@contextlib.contextmanager
def _damage_named(file: Path, kind: str) -> Iterator[None]:
    """Turn the errors of a decompressor into a DataError; errors of the file system pass unchanged."""
    try:
        yield
    except EOFError as e:
        raise _truncated(file, kind) from e
    except (gzip.BadGzipFile, zlib.error) as e:
        raise _damaged(file, kind, e) from e
    except OSError as e:
        if e.errno is not None:
            raise
        if "truncated" in str(e).lower():
            raise _truncated(file, kind) from e
        raise _damaged(file, kind, e) from e


def _truncated(file: Path, kind: str) -> DataError:
    return DataError(
        f"the {kind} file {file} is truncated: it ends before its compressed data does", hint="copy the file again"
    )


def _damaged(file: Path, kind: str, error: Exception) -> DataError:
    reason = str(error).strip().partition("\n")[0]
    return DataError(
        f"{file} is damaged or not a {kind} file: {reason}",
        hint=f"if the rows are not compressed: mv {shlex.quote(str(file))} {shlex.quote(str(file.with_suffix('')))}",
    )
