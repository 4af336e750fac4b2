"""Tokenized examples on disk, read row by row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow


BATCH = 1000
"""Rows per record batch, collected in memory and written together; only the last batch can have fewer."""


class Examples:
    """Tokenized rows in an Arrow file; a map-style dataset whose items are mappings of lists of integers."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @cached_property
    def _batches(self) -> pyarrow.RecordBatchFileReader:
        import pyarrow

        return pyarrow.ipc.open_file(pyarrow.memory_map(str(self.file)))

    @cached_property
    def _length(self) -> int:
        last = self._batches.num_record_batches - 1
        return last * BATCH + int(self._batches.get_batch(last).num_rows) if last >= 0 else 0

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file}  # a worker process opens the file itself

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        batch, place = divmod(range(self._length)[index], BATCH)  # all batches but the last are full
        columns = self._batches.get_batch(batch)
        return {
            name: _numbers(column[place].values)
            for name, column in zip(columns.schema.names, columns.columns, strict=True)
        }

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, list[int]]]:
        return [self[i] for i in indices]

    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return list(self.each_length())

    def each_length(self) -> Iterator[int]:
        """Tokens of each example, with one record batch in memory at a time."""
        import pyarrow.compute

        for i in range(self._batches.num_record_batches):
            yield from pyarrow.compute.list_value_length(self._batches.get_batch(i).column(0)).to_pylist()


def _numbers(values: pyarrow.Array) -> list[int]:
    """The int32 values of an Arrow array. `to_pylist` creates an object per number; `to_numpy` imports pandas."""
    if not len(values):
        return []
    numbers = memoryview(values.buffers()[1]).cast("b").cast("i")
    return numbers[values.offset : values.offset + len(values)].tolist()


def _lists(rows: Sequence[Sequence[int]]) -> pyarrow.Array:
    """An Arrow array of lists of int32, from buffers: `pyarrow.array` imports pandas to recognize its objects."""
    import pyarrow

    offsets, values = array("i", [0]), array("i")
    for row in rows:
        values.extend(row)
        offsets.append(len(values))
    numbers = pyarrow.Array.from_buffers(pyarrow.int32(), len(values), [None, pyarrow.py_buffer(values)])
    buffers = [None, pyarrow.py_buffer(offsets)]
    return pyarrow.Array.from_buffers(pyarrow.list_(pyarrow.int32()), len(rows), buffers, children=[numbers])


class _ArrowFile:
    """Rows of lists of integers, written in batches."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.names: list[str] | None = None
        self.rows: list[Mapping[str, Sequence[int]]] = []
        self.writer: Any = None
        self.sink: Any = None

    def add(self, row: Mapping[str, Sequence[int]]) -> None:
        self.rows.append(row)
        if len(self.rows) >= BATCH:
            self.flush()

    def flush(self) -> None:
        import pyarrow

        if self.writer is None:
            self.names = list(self.rows[0]) if self.rows else ["input_ids"]
            schema = pyarrow.schema([(n, pyarrow.list_(pyarrow.int32())) for n in self.names])
            self.sink = pyarrow.OSFile(str(self.file), "wb")
            self.writer = pyarrow.ipc.new_file(self.sink, schema)
        if self.rows:
            columns = [_lists([row[name] for row in self.rows]) for name in self.names or ()]
            self.writer.write_batch(pyarrow.record_batch(columns, names=self.names))
            self.rows.clear()

    def close(self) -> None:
        self.flush()
        self.writer.close()
        self.sink.close()
