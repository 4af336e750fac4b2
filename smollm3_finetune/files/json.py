"""JSON files of a model or a run, and file hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.limits import BeyondLimit, load_json
from smollm3_finetune.files.writing import write_text


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError if the file does not hold one, or is beyond a limit of `limits`."""
    try:
        value = load_json(path)
    except FileNotFoundError as e:
        raise ModelError(f"{path} does not exist") from e
    except (OSError, ValueError) as e:
        hint = e.limit.hint if isinstance(e, BeyondLimit) else None
        raise ModelError(f"{path} cannot be read as JSON: {e}", hint=hint) from e
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, found {json_type(value)}")
    return value


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if it does not hold one: for values that are shown if they are known."""
    try:
        return read_json(path)
    except ModelError:
        return {}


JSON_TYPES = {bool: "true or false", int: "a number", float: "a number", str: "text", dict: "an object"}


def json_type(value: Any) -> str:
    """The type of a value of a row or a JSON file, for an error message: `text`, `a list`, `nothing` for None."""
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list | tuple) else JSON_TYPES.get(type(value), type(value).__name__)


def has_value(value: Any) -> bool:
    """Whether a field of a row has content: not null, NaN, blank text or an empty list or object; false and 0 have."""
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    if isinstance(value, float):
        return value == value
    return value is not None and not (isinstance(value, list | tuple | dict) and not value)


def names_code(about: Any) -> bool:
    """Whether the description of a model names Python code of its own (`auto_map`), at any level."""
    if isinstance(about, dict):
        return "auto_map" in about or any(map(names_code, about.values()))
    return isinstance(about, list) and any(map(names_code, about))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; the file is streamed."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all. Raises ValueError for a number that is not finite."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
