"""Runs in a separate process: can the rows of a Parquet or Arrow file be read, without a crash and within memory?

pyarrow trusts offsets and lengths in a file: reading a damaged Arrow file ends Python with SIGSEGV or SIGBUS. A full
validation finds these; compressed or encoded columns may also expand to any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow
from pyarrow import parquet

ROWS = 1000
EXPANDING = ("dictionary", "run_end_encoded", "_view")
"""Types with values that many rows share: as Python objects they may be far larger than in the file."""


def batches(file: str, suffix: str) -> Iterator[pyarrow.RecordBatch]:
    """The record batches of a Parquet file, or of a file in Arrow's stream or file format, which is memory-mapped."""
    if suffix == ".parquet":
        yield from parquet.ParquetFile(file).iter_batches(batch_size=ROWS)
        return
    with pyarrow.memory_map(file) as stream:
        try:
            reader = pyarrow.ipc.open_stream(stream)
        except pyarrow.ArrowInvalid:
            stream.seek(0)
        else:
            yield from reader
            return
        in_file = pyarrow.ipc.open_file(stream)
        yield from (in_file.get_batch(i) for i in range(in_file.num_record_batches))


def answer(job: Any) -> dict[str, Any]:
    """`{"rows": N}` if the first `job["limit"]` rows can be read (None: all of them), else the `error`."""
    try:
        return {"rows": _check(job)}
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as e:
        if isinstance(e, MemoryError):  # pyarrow's own is both
            raise
        return {"error": str(e).strip().partition("\n")[0] or type(e).__name__}


def _check(job: Any) -> int:
    number = 0
    for batch in batches(job["file"], job["suffix"]):
        batch.validate(full=True)
        if batch.nbytes > job["memory"]:
            raise MemoryError
        if any(word in str(kind) for kind in batch.schema.types for word in EXPANDING):
            for start in range(0, batch.num_rows, ROWS):
                batch.slice(start, ROWS).to_pylist()
        number += batch.num_rows
        if job["limit"] is not None and number >= job["limit"]:
            break
    return number
