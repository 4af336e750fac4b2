"""Saving a chat as a row of training data."""

from __future__ import annotations

import json
from pathlib import Path

from smollm3_finetune.errors import ConfigError, DataError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.limits import parse_json
from smollm3_finetune.files.writing import append_text
from smollm3_finetune.inference.conversation import History
from smollm3_finetune.paths import user_path


def save(history: History, path: str | Path) -> int:
    """Append the history as a `messages` row to a JSONL file, which is created if needed; returns the row's number.

    Raises ConfigError if there are no turns, DataError if the file has anything but rows of messages, and WriteError if
    it cannot be written. The file is then unchanged.
    """
    if not history.turns:
        raise ConfigError("there is nothing to save: the chat has no turns")
    file = user_path(path, "/save")
    if file.is_dir():
        raise ConfigError(f"/save: {str(file)!r} is a directory", hint=f"/save {file / 'chat.jsonl'}")
    rows, text = 0, json.dumps(history.row(), ensure_ascii=False) + "\n"
    if file.exists():
        rows, ended = _rows(file)
        text = text if ended else f"\n{text}"
    with writing(file):
        append_text(file, text)
    return rows + 1


def _rows(file: Path) -> tuple[int, bool]:
    """The number of rows in a file, and whether its last line is ended."""
    count, line = 0, "\n"
    try:
        with file.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip() and not _is_row(line):
                    raise _refused(file, f"line {number} is not a row of messages")
                count += bool(line.strip())
    except OSError as e:
        raise _refused(file, f"it cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise _refused(file, "it is not UTF-8 text") from e
    return count, line.endswith("\n")


def _is_row(line: str) -> bool:
    try:
        row = parse_json(line)
    except ValueError:
        return False
    return isinstance(row, dict) and isinstance(row.get("messages"), list)


def _refused(file: Path, why: str) -> DataError:
    return DataError(f"nothing was saved: {file} is not a JSONL file of messages: {why}", hint="/save another file")
