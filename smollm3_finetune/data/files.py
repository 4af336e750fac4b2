"""Reading the rows of one file, each with its location. Only the current rows are kept in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from smollm3_finetune.data.compressed import COMPRESSIONS, ROW_LIMIT, compression, open_text
from smollm3_finetune.data.json_list import JSONListError, JSONListReader
from smollm3_finetune.errors import DataError

TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT, ".parquet", ".arrow")
FORMATS = f"{', '.join(SUFFIXES)}, or text compressed as {' or '.join(COMPRESSIONS)}"
FIELD_LIMIT = 1 << 30
"""The longest field of an uncompressed table, in characters: a field can be a whole document."""


def row_format(file: Path) -> str | None:
    """The extension that gives the format of a file's rows, `.csv` for `rows.csv.gz`; None if it is not supported."""
    if compression(file) is None:
        return file.suffix if file.suffix in SUFFIXES else None
    inner = file.with_suffix("").suffix
    return inner if inner in TEXT else None


@dataclass(frozen=True)
class Row:
    """One row and its location: `rows.jsonl:12`."""

    value: Mapping[str, Any]
    where: str


def read_file(file: Path, limit: int | None = None) -> Iterator[Row]:
    """The rows of a file, at most `limit`. Raises DataError with file and line if a row is invalid or there is none."""
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
    }
    empty = True
    try:
        for row in islice(readers[row_format(file) or file.suffix](file), limit):
            empty = False
            yield row
    except UnicodeDecodeError as e:
        raise _encoding_error(file, e) from e
    except OSError as e:
        raise DataError(f"{file} cannot be read: {e.strerror or e}") from e
    if empty:
        raise DataError(f"{file} holds no rows")


def _encoding_error(file: Path, error: UnicodeDecodeError) -> DataError:
    """An error with the line and the offset in the whole file, which the decoder does not know: it reads in chunks."""
    if row_format(file) not in TEXT:
        return DataError(f"{file} contains text that is not UTF-8: {error.reason}")
    before, whole = 0, "the file" if compression(file) is None else "the decompressed file"
    with open_text(file, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        for number, line in enumerate(_lines(stream, file), start=1):
            encoded = line.encode("utf-8", "surrogateescape")
            try:
                encoded.decode("utf-8")
            except UnicodeDecodeError as e:
                return DataError(f"{file}:{number}: not UTF-8 text: {e.reason} at byte {before + e.start} of {whole}")
            before += len(encoded)
    return DataError(f"{file} is not UTF-8 text: {error.reason}")


def _row_limit(file: Path) -> int | None:
    """The longest row that is read, in characters; None: no limit, because the size of the file is no surprise."""
    return None if compression(file) is None else ROW_LIMIT


def _lines(stream: TextIO, file: Path) -> Iterator[str]:
    """The lines of a file. Raises DataError if a line of a compressed file is too long."""
    limit = _row_limit(file)
    if limit is None:
        yield from stream
        return
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise DataError(f"{file}:{number}: a row has more than {limit:,} characters")
        yield line


def _read_jsonl(file: Path) -> Iterator[Row]:
    with open_text(file) as stream:
        for number, line in enumerate(_lines(stream, file), start=1):
            if line.strip():
                where = f"{file}:{number}"
                try:
                    value = json.loads(line.rstrip("\r\n"))
                except (ValueError, RecursionError) as e:
                    raise DataError(f"{where}: not valid JSON: {_json_problem(e)}") from e
                yield _checked_row(value, where)


def _read_json(file: Path) -> Iterator[Row]:
    """A list of rows."""
    with open_text(file) as stream:
        try:
            for line, value in JSONListReader(stream, _row_limit(file)).rows():
                yield _checked_row(value, f"{file}:{line}")
        except JSONListError as e:
            hint = None if e.line is not None else "for one object per line, use a .jsonl file"
            raise DataError(f"{file}{'' if e.line is None else f':{e.line}'}: {e}", hint=hint) from e


def _read_csv(file: Path) -> Iterator[Row]:
    """Values separated by commas (.tsv: by tabs) with a header; every value is text, quoted if necessary."""
    csv.field_size_limit(_row_limit(file) or FIELD_LIMIT)
    tabs = row_format(file) == ".tsv"
    with open_text(file, newline="") as stream:
        lines: Iterable[str] = _lines(stream, file)
        reader = csv.DictReader(lines, strict=True, delimiter="\t" if tabs else ",")
        try:
            for value in reader:
                where = f"{file}:{reader.line_num}"
                if None in value or None in value.values():
                    raise DataError(f"{where}: expected {len(reader.fieldnames or ())} columns, as in the header")
                yield Row(value, where)
        except csv.Error as e:
            raise DataError(f"{file}:{reader.reader.line_num}: not valid {'TSV' if tabs else 'CSV'}: {e}") from e


def _read_parquet(file: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        batches = parquet.ParquetFile(str(file)).iter_batches(batch_size=1000)
        yield from _numbered_rows(file, batches)
    except ArrowException as e:
        raise DataError(f"{file} is not a Parquet file: {_first_line(e)}") from e


def _read_arrow(file: Path) -> Iterator[Row]:
    """A file in Arrow's stream or file format, memory-mapped."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as stream:
            try:
                yield from _numbered_rows(file, pyarrow.ipc.open_stream(stream))
                return
            except pyarrow.ArrowInvalid:
                stream.seek(0)
            reader = pyarrow.ipc.open_file(stream)
            yield from _numbered_rows(file, (reader.get_batch(i) for i in range(reader.num_record_batches)))
    except pyarrow.ArrowException as e:
        raise DataError(f"{file} is not an Arrow file: {_first_line(e)}") from e


def _numbered_rows(file: Path, batches: Any) -> Iterator[Row]:
    """The rows of record batches, numbered from 1, because they have no lines."""
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield Row(without_fill_nulls(value), f"{file} row {number}")


def without_fill_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table without the nulls that the table added: in a table, a struct has the keys of all rows.

    Null columns stay, and so do null keys of the objects in a list column (such as messages), where a null can be
    intended.
    """
    return {
        name: [_without_nulls_in_item(item) for item in value] if isinstance(value, list) else _without_nulls(value)
        for name, value in row.items()
    }


def _without_nulls_in_item(item: Any) -> Any:
    return (
        {key: _without_nulls(value) for key, value in item.items()} if isinstance(item, dict) else _without_nulls(item)
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _json_problem(error: Exception) -> str:
    """The problem and its column; the message already names the line."""
    return f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)


def _checked_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row must be an object, found {type(value).__name__}")
    return Row(value, where)
