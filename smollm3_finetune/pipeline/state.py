"""The state of a pipeline: what each stage was made from, where it is, and how far it got. Written whole, always."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import read_json, write_json
from smollm3_finetune.pipeline.layout import DAMAGED, PipelineDir
from smollm3_finetune.pipeline.stage import PipelineFile

Progress = Literal["running", "finished", "interrupted", "failed"]
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known about a stage that was begun."""

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

    def with_record(self, stage: str, record: Record) -> State:
        return State(records={**self.records, stage: record})


def read_state(place: PipelineDir) -> State:
    """The state of a pipeline; empty if it was never run. Raises ModelError if its file is damaged."""
    if not place.state.exists():
        return State()
    damaged = place.state.with_name(DAMAGED)
    rename = f"mv {shlex.quote(str(place.state))} {shlex.quote(str(damaged))}"
    hint = f"to run every stage again, in new directories: {rename}"
    try:
        about = read_json(place.state)
    except ModelError as e:
        raise ModelError(e.message, hint=e.hint or hint) from e
    try:
        if about["version"] != VERSION:
            raise ValueError(f"version {about['version']!r}")
        return State(records={str(name): _record(values) for name, values in about["stages"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ModelError(f"{place.state} is damaged: {type(e).__name__}: {e}", hint=hint) from e


def write_state(place: PipelineDir, pipeline: PipelineFile, state: State) -> None:
    """Replace the state file. The caller holds the directory."""
    about = {
        "version": VERSION,
        "name": pipeline.name,
        "file": str(pipeline.path.absolute()),
        "stages": {name: dataclasses.asdict(record) for name, record in state.records.items()},
    }
    with writing(place.state):
        write_json(place.state, about)


def _record(values: Mapping[str, Any]) -> Record:
    record = Record(**{**values, "former": tuple(values["former"])})
    texts = (record.kind, record.directory, record.state, record.began, *record.inputs.values(), *record.former)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("names, hashes and times must be text")
    if Path(record.directory).name != record.directory or record.directory in ("", ".", ".."):
        raise ValueError(f"the directory {record.directory!r} is not a name")
    if not isinstance(record.seconds, int | float) or not isinstance(record.result, Mapping):
        raise TypeError("seconds must be a number, and result an object")
    return record
