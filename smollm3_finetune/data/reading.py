"""Reading rows from JSONL and JSON files, each with the place it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import DataError

EMBEDDED = Path(__file__).parents[1] / "builtin" / "chat.jsonl"
SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class Row:
    """One row and where it stands: `rows.jsonl:12`."""

    value: Mapping[str, Any]
    where: str


def find_file(path: str | None) -> Path:
    """The data file that a user named, or the embedded one. Raises DataError where there is none."""
    if path is None:
        return EMBEDDED
    file = Path(path).expanduser()
    if file.is_dir():
        inside = sorted(f.name for f in file.iterdir() if f.suffix in SUFFIXES)
        hint = f"--data {file / inside[0]}" if inside else "--data FILE.jsonl"
        raise DataError(f"--data takes a file, and {path!r} is a directory", hint=hint)
    if not file.exists():
        near = sorted(f.name for f in file.parent.glob("*.json*"))[:5] if file.parent.is_dir() else []
        hint = f"in {file.parent} there are: {', '.join(near)}" if near else "--data FILE.jsonl"
        raise DataError(f"the data file {path!r} does not exist", hint=hint)
    if file.suffix not in SUFFIXES:
        raise DataError(f"the data file {path!r} is neither .jsonl nor .json", hint="--data FILE.jsonl")
    return file


def read_rows(path: str | None, limit: int | None = None) -> list[Row]:
    """The rows of a file, at most `limit`. Raises DataError with file and line, and for a file without rows."""
    file = find_file(path)
    reader = _read_json if file.suffix == ".json" else _read_jsonl
    try:
        rows = list(islice(reader(file), limit))
    except UnicodeDecodeError as e:
        raise DataError(f"{file} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    except OSError as e:
        raise DataError(f"{file} cannot be read: {e.strerror}") from e
    if not rows:
        raise DataError(f"{file} holds no rows")
    return rows


def _read_jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                where = f"{file}:{number}"
                try:
                    value = json.loads(line.rstrip("\r\n"))
                except ValueError as e:
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
        except ValueError as e:
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


def _why(error: ValueError) -> str:
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
