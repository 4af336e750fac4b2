"""Reading the rows of one file, each with the place it came from; nothing is kept in memory but the current rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import DataError

TEXT = (".jsonl", ".json", ".csv")
SUFFIXES = (*TEXT, ".parquet", ".arrow")


@dataclass(frozen=True)
class Row:
    """One row and where it stands: `rows.jsonl:12`."""

    value: Mapping[str, Any]
    where: str


def read_file(file: Path, limit: int | None = None) -> Iterator[Row]:
    """The rows of a file, at most `limit`. Raises DataError with file and line, and for a file without rows."""
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
    }
    empty = True
    try:
        for row in islice(readers[file.suffix](file), limit):
            empty = False
            yield row
    except UnicodeDecodeError as e:
        raise _not_utf8(file, e) from e
    except OSError as e:
        raise DataError(f"{file} cannot be read: {e.strerror or e}") from e
    if empty:
        raise DataError(f"{file} holds no rows")


def _not_utf8(file: Path, error: UnicodeDecodeError) -> DataError:
    """What the decoder, which works on pieces of the file, cannot say: the line, and the place in the whole file."""
    if file.suffix not in TEXT:
        return DataError(f"{file} holds text that is not UTF-8: {error.reason}")
    before = 0
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        for number, line in enumerate(stream, start=1):
            encoded = line.encode("utf-8", "surrogateescape")
            try:
                encoded.decode("utf-8")
            except UnicodeDecodeError as e:
                return DataError(f"{file}:{number}: not UTF-8 text: {e.reason} at byte {before + e.start} of the file")
            before += len(encoded)
    return DataError(f"{file} is not UTF-8 text: {error.reason}")


def _read_jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                where = f"{file}:{number}"
                try:
                    value = json.loads(line.rstrip("\r\n"))
                except (ValueError, RecursionError) as e:
                    raise DataError(f"{where}: not valid JSON: {_why(e)}") from e
                yield _row(value, where)


def _read_json(file: Path) -> Iterator[Row]:
    """A list of rows. Decoded one by one, so that each row knows the line it begins on."""
    text = file.read_text(encoding="utf-8-sig")
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        raise DataError(f"{file}: expected a list of rows", hint="one object per line goes into a .jsonl file")
    position, line, counted = _skip(text, position + 1), 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as e:
            at = f":{e.lineno}" if isinstance(e, json.JSONDecodeError) else f":{line}"
            raise DataError(f"{file}{at}: not valid JSON: {_why(e)}") from e
        yield _row(value, f"{file}:{line}")
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            at_line = text.count("\n", 0, position) + 1
            raise DataError(f"{file}:{at_line}: not valid JSON: expected ',' or ']' after a row")
    after = _skip(text, position + 1)
    if after < len(text):
        raise DataError(f"{file}:{text.count(chr(10), 0, after) + 1}: not valid JSON: text after the list of rows")


def _read_csv(file: Path) -> Iterator[Row]:
    """Comma-separated values with a header; every value is text."""
    csv.field_size_limit(1 << 30)  # a field is a whole document at times
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for value in reader:
                where = f"{file}:{reader.line_num}"
                if None in value or None in value.values():
                    raise DataError(f"{where}: expected {len(reader.fieldnames or ())} columns, as in the header")
                yield Row(value, where)
        except csv.Error as e:
            raise DataError(f"{file}:{reader.reader.line_num}: not valid CSV: {e}") from e


def _read_parquet(file: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        batches = parquet.ParquetFile(str(file)).iter_batches(batch_size=1000)
        yield from _numbered(file, batches)
    except ArrowException as e:
        raise DataError(f"{file} is not a Parquet file: {_first_line(e)}") from e


def _read_arrow(file: Path) -> Iterator[Row]:
    """Arrow's stream or file format, memory-mapped."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as stream:
            try:
                yield from _numbered(file, pyarrow.ipc.open_stream(stream))
                return
            except pyarrow.ArrowInvalid:
                stream.seek(0)
            reader = pyarrow.ipc.open_file(stream)
            yield from _numbered(file, (reader.get_batch(i) for i in range(reader.num_record_batches)))
    except pyarrow.ArrowException as e:
        raise DataError(f"{file} is not an Arrow file: {_first_line(e)}") from e


def _numbered(file: Path, batches: Any) -> Iterator[Row]:
    """Rows of record batches; they have no lines, so they are counted from 1."""
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield Row(without_fillers(value), f"{file} row {number}")


def without_fillers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table without the nulls that fill its structs up: in a table, each has the keys of all rows' together.

    Null columns stay, and so do null keys of what a column lists, messages for one, where a null can be meant.
    """
    return {
        name: [_listed(item) for item in value] if isinstance(value, list) else _filled(value)
        for name, value in row.items()
    }


def _listed(item: Any) -> Any:
    return {key: _filled(value) for key, value in item.items()} if isinstance(item, dict) else _filled(item)


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(v) for key, v in value.items() if v is not None}
    return [_filled(v) for v in value] if isinstance(value, list) else value


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _why(error: Exception) -> str:
    """What is wrong and in which column; the line of the file is said already."""
    return f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)


def _skip(text: str, position: int) -> int:
    """The next position that is not white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row must be an object, found {type(value).__name__}")
    return Row(value, where)
