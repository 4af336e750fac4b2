"""Reading the rows of one file, each with its location. Only the current rows are kept in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from smollm3_finetune.data.compressed import COMPRESSIONS, compression, open_text
from smollm3_finetune.data.json_list import JSONListError, JSONListReader
from smollm3_finetune.errors import DataError
from smollm3_finetune.files.json import json_type
from smollm3_finetune.files.limits import (
    JSON_SIZE,
    ROWS_SIZE,
    parse_json,
    shown_bytes,
)
from smollm3_finetune.files.separate import Ended, TooMuchMemory, in_separate_process

TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
KINDS = {".parquet": "a Parquet file", ".arrow": "an Arrow file"}
SUFFIXES = (*TEXT, *KINDS)
FORMATS = f"{', '.join(SUFFIXES)}, or text compressed as {' or '.join(COMPRESSIONS)}"
SCRIPT = Path(__file__).with_name("try_table.py")


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
        ".parquet": lambda file: _table_rows(file, limit),
        ".arrow": lambda file: _table_rows(file, limit),
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
        raise DataError(f"{file} contains no rows")


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


def _lines(stream: TextIO, file: Path) -> Iterator[str]:
    """The lines of a file. Raises DataError if a line is too long."""
    most, number = JSON_SIZE.size, 0
    while line := stream.readline(most + 1):
        number += 1
        if len(line) > most:
            raise DataError(f"{file}:{number}: the row is larger than {shown_bytes(most)}", hint=JSON_SIZE.hint)
        yield line


def _read_jsonl(file: Path) -> Iterator[Row]:
    with open_text(file) as stream:
        for number, line in enumerate(_lines(stream, file), start=1):
            where = f"{file}:{number}"
            if line.strip():
                try:
                    value = parse_json(line.rstrip("\r\n"))
                except ValueError as e:
                    raise DataError(f"{where}: {_json_problem(e)}") from e
                yield _checked_row(value, where)


def _read_json(file: Path) -> Iterator[Row]:
    """A list of rows."""
    with open_text(file) as stream:
        try:
            for line, value in JSONListReader(stream, JSON_SIZE.size).rows():
                yield _checked_row(value, f"{file}:{line}")
        except JSONListError as e:
            hint = e.hint or (None if e.line is not None else "for one object per line, use a .jsonl file")
            raise DataError(f"{file}{'' if e.line is None else f':{e.line}'}: {e}", hint=hint) from e


def _read_csv(file: Path) -> Iterator[Row]:
    """Values separated by commas (.tsv: by tabs) with a header; every value is text, quoted if necessary."""
    csv.field_size_limit(JSON_SIZE.size)
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


def _table_rows(file: Path, limit: int | None) -> Iterator[Row]:
    """The rows of a Parquet or Arrow file, numbered from 1, because they have no lines."""
    import pyarrow

    from smollm3_finetune.data.try_table import ROWS, batches

    check_table(file, limit)
    number = 0
    try:
        for batch in batches(str(file), file.suffix):
            for start in range(0, batch.num_rows, ROWS):
                for value in batch.slice(start, ROWS).to_pylist():
                    number += 1
                    yield Row(without_fill_nulls(value), f"{file} row {number}")
    except pyarrow.ArrowException as e:
        raise DataError(f"{file} is not {KINDS[file.suffix]}: {_first_line(e)}") from e


_CHECKED: dict[tuple[str, int, int], float] = {}
"""The files that were checked in this process, by path, size and time, and how many of their rows."""


def check_table(file: Path, limit: int | None) -> None:
    """Read the first `limit` rows of a Parquet or Arrow file in a separate process, at most once; None: all of them.

    Raises DataError if that process crashes, or needs more memory than `ROWS_SIZE`: this one would, too.
    """
    about = file.stat()
    key, rows = (str(file.absolute()), about.st_size, about.st_mtime_ns), limit or float("inf")
    if _CHECKED.get(key, 0) >= rows:
        return
    job = {"file": str(file), "suffix": file.suffix, "limit": limit, "memory": ROWS_SIZE.size}
    try:
        found = in_separate_process(SCRIPT, job, memory=ROWS_SIZE.size)
    except TooMuchMemory as e:
        what = f"{file}: a batch of its rows needs more than {shown_bytes(ROWS_SIZE.size)} of memory"
        raise DataError(f"{what} when it is decompressed", hint=ROWS_SIZE.hint) from e
    except Ended as e:
        raise DataError(f"{file} is damaged: reading it {e}", hint="download or copy it again") from e
    if "error" in found:
        raise DataError(f"{file} is not {KINDS[file.suffix]}, or is damaged: {found['error']}")
    _CHECKED[key] = rows if limit is not None and found["rows"] >= limit else float("inf")


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


def _json_problem(error: ValueError) -> str:
    """The problem and its column; the message already names the line."""
    message = error.msg.removesuffix(" starting at") if isinstance(error, json.JSONDecodeError) else ""
    column = f"{message} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)
    return f"not valid JSON: {column}"


def _checked_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row must be an object, found {json_type(value)}")
    return Row(value, where)
