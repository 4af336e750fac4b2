"""The state of a pipeline or a sweep: what each part was made from, and how far it got. It is written whole, always."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import read_json, write_json
from smollm3_finetune.pipeline.layout import Described, StateDir

Progress = Literal["running", "finished", "interrupted", "failed", "stopped", "submitted"]
"""Only trials of a sweep are stopped, early and on purpose, or submitted as a job."""
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known about a stage or a trial that was begun."""

    kind: str
    directory: str
    """The name of its directory."""
    inputs: Mapping[str, str]
    """A hash of each part that the stage depends on."""
    state: Progress
    """`running` while a process runs it, and after it was killed."""
    began: str
    """When its last attempt began, in ISO 8601."""
    seconds: float = 0.0
    """The time of all attempts that this process saw the end of."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """`before`, `after` and `verdict`, if they were measured."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """Size, time and SHA-256 of each file of a finished stage; see `results`."""
    error: str | None = None
    former: tuple[str, ...] = ()
    """Directories of the same stage that it no longer uses."""


@dataclass(frozen=True, kw_only=True)
class State:
    records: Mapping[str, Record] = field(default_factory=dict)

    def with_record(self, part: str, record: Record) -> State:
        return State(records={**self.records, part: record})


def read_state(place: StateDir) -> State:
    """The state of a pipeline or a sweep; empty if it was never run. Raises ModelError if its file is damaged."""
    if not place.state.exists():
        return State()
    rename = f"mv {shlex.quote(str(place.state))} {shlex.quote(str(place.damaged))}"
    hint = f"to run every {place.part} again, in new directories: {rename}"
    try:
        about = read_json(place.state)
    except ModelError as e:
        raise ModelError(e.message, hint=e.hint or hint) from e
    try:
        if about["version"] != VERSION:
            raise ValueError(f"version {about['version']!r}")
        return State(records={str(name): _record(values) for name, values in about[f"{place.part}s"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ModelError(f"{place.state} is damaged: {type(e).__name__}: {e}", hint=hint) from e


def write_state(place: StateDir, file: Described, state: State) -> None:
    """Replace the state file. The caller holds the directory."""
    about = {
        "version": VERSION,
        "name": file.name,
        "file": str(file.path.absolute()),
        f"{place.part}s": {name: dataclasses.asdict(record) for name, record in state.records.items()},
    }
    with writing(place.state):
        write_json(place.state, about)


def _record(values: Mapping[str, Any]) -> Record:
    """Raises KeyError, TypeError, ValueError or AttributeError for a record of another form."""
    if not isinstance(values["former"], list):
        raise TypeError("former must be a list")
    record = Record(**{**values, "former": tuple(values["former"])})
    texts = (record.kind, record.directory, record.state, record.began, *record.inputs.values(), *record.former)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("names, hashes and times must be text")
    if Path(record.directory).name != record.directory or record.directory in ("", ".", ".."):
        raise ValueError(f"the directory {record.directory!r} is not a name")
    if record.state not in get_args(Progress):
        raise ValueError(f"there is no state {record.state!r}")
    if not _is_number(record.seconds) or not isinstance(record.error, str | None):
        raise TypeError("seconds must be a number, and error must be text")
    for name, value in record.figures.items():
        if value is not None and not (isinstance(value, str) if name == "verdict" else _is_number(value)):
            raise TypeError(f"the figure {name!r} cannot be {value!r}")
    for name, about in record.result.items():
        if not isinstance(about, list) or len(about) != 3:
            raise TypeError(f"size, time and hash of {name!r} must be a list of three values")
        if not _is_number(about[0]) or not _is_number(about[1]) or not isinstance(about[2], str):
            raise TypeError(f"size and time of {name!r} must be numbers, and its hash must be text")
    return record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
