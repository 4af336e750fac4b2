"""What is known about a run without reading its tensors: for lists, comparisons and reports. Does not import torch."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.files.json import read_json
from smollm3_finetune.files.limits import parse_json
from smollm3_finetune.files.locks import is_held
from smollm3_finetune.runs.facts import RunFacts, facts_of
from smollm3_finetune.runs.failure import failure_of
from smollm3_finetune.runs.part_of import parts_of
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.traces import LOCK
from smollm3_finetune.runs.trained import trained_count

State = Literal["running", "finished", "interrupted", "failed", "damaged"]
STATES: tuple[State, ...] = ("running", "finished", "interrupted", "failed", "damaged")
LAST_LINES = 16_384
"""Bytes at the end of metrics.jsonl that are read for the last step."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run in a few values. Those that are not known are None."""

    path: Path
    state: State
    damage: str | None = None
    """Why the run is damaged, as a sentence; only then."""
    error: Mapping[str, Any] | None = None
    """`message` and `hint` of the error that ended a failed run."""
    facts: RunFacts = field(default_factory=RunFacts)
    """Model, components, data, planned steps."""
    part_of: Mapping[str, str] = field(default_factory=dict)
    """`pipeline` and `stage`, or `sweep` and `trial`; empty for any other run."""
    steps: int | None = None
    """Optimizer steps taken, as far as they were logged."""
    before: float | None = None
    """Held-out loss before training, in nats per supervised token."""
    after: float | None = None
    """Held-out loss after training, in nats per supervised token."""
    comparison: Mapping[str, Any] | None = None
    """The comparison of the losses before and after, with its interval and verdict; see docs/runs.md."""
    started: datetime.datetime | None = None
    finished: datetime.datetime | None = None
    seconds: float | None = None
    """Duration of the command that finished the run."""
    bytes: int = 0
    """Size of all files in the run directory."""
    checkpoint_bytes: int = 0
    """Size of the files in `checkpoints/`."""

    @classmethod
    def of(cls, run: RunDir) -> RunSummary:
        """The summary of a run. A damaged run has the state `damaged`; nothing is raised."""
        size, checkpoints = sizes(run.path)
        running = is_held(run.path / LOCK)
        values: dict[str, Any] = {"path": run.path, "bytes": size, "checkpoint_bytes": checkpoints}
        try:
            values |= _read(run)
        except (ModelError, ConfigError) as e:
            if not running:
                return cls(**values, state="damaged", damage=e.message, started=_modified(run.path))
        state: State = "interrupted"
        if running:
            state = "running"
        elif values.get("error") is not None:
            state = "failed"
        elif values.get("finished") is not None:
            state = "finished"
        return cls(**values, state=state)

    @property
    def verdict(self) -> str | None:
        """`better`, `worse` or `cannot tell`; None if the run has not compared its losses."""
        return None if self.comparison is None else self.comparison["verdict"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        about = asdict(self.facts)
        planned = about.pop("steps")
        about.pop("started")
        return {
            "path": str(self.path),
            "state": self.state,
            "damage": self.damage,
            "error": None if self.error is None else dict(self.error),
            **about,
            "data": list(self.facts.data),
            "part_of": dict(self.part_of) or None,
            "steps": self.steps,
            "planned_steps": planned,
            "before": self.before,
            "after": self.after,
            "verdict": self.verdict,
            "comparison": None if self.comparison is None else dict(self.comparison),
            "started": None if self.started is None else self.started.isoformat(timespec="seconds"),
            "finished": None if self.finished is None else self.finished.isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "bytes": self.bytes,
            "checkpoint_bytes": self.checkpoint_bytes,
        }


def _read(run: RunDir) -> dict[str, Any]:
    """The values that the files of a run hold. Raises ModelError or ConfigError if one of them is damaged."""
    if not run.config.is_file():
        raise ModelError("run.yaml is missing")
    if not run.versions.is_file():
        raise ModelError("versions.json is missing")
    about = facts_of(run)
    values: dict[str, Any] = {"facts": about, "started": _parsed(about.started) or _modified(run.versions)}
    values["part_of"] = next(iter(parts_of(run).values()), {})
    if (error := failure_of(run)) is not None:
        values["error"] = error
    if run.report.is_file():
        values |= _reported(run)
        if not about.data:  # of an earlier version
            values["facts"] = replace(about, data=_titles(read_json(run.report)))
        return values
    with contextlib.suppress(ModelError):  # a resumed run measures again
        values["before"] = _number(read_json(run.before), "held_out_loss", run.before) if run.before.is_file() else None
    values["steps"] = trained_count(run, "steps") if run.trained.exists() else last_step(run.metrics)
    return values


def _reported(run: RunDir) -> dict[str, Any]:
    """The values in report.json."""
    report, file = read_json(run.report), run.report
    before, after = (report.get(when) for when in ("before", "after"))
    if not isinstance(before, dict) or not isinstance(after, dict):
        raise ModelError(f"{file} is damaged: before and after must be objects")
    comparison = report.get("comparison")
    if comparison is not None and not is_comparison(comparison):
        raise ModelError(f"{file} is damaged: comparison must have before, after, difference, low, high and a verdict")
    steps = report.get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise ModelError(f"{file} is damaged: steps must be a whole number")
    return {
        "steps": steps,
        "before": _number(before, "held_out_loss", file),
        "after": _number(after, "held_out_loss", file),
        "comparison": comparison,
        "finished": _modified(file),
        "seconds": _number(report, "seconds", file),
    }


def is_comparison(value: Any) -> bool:
    """Whether a value compares two losses: it has both, their difference and a verdict, perhaps an interval."""
    if not isinstance(value, Mapping) or not isinstance(value.get("verdict"), str):
        return False
    ends = [value.get(key) for key in ("low", "high")]
    numbers = [value.get(key) for key in ("before", "after", "difference")]
    numbers += ends if ends != [None, None] else []
    return all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)


def _titles(report: Mapping[str, Any]) -> tuple[str, ...]:
    """The titles of the sources of the rows in report.json."""
    rows = report.get("rows")
    found = [row.get("title") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return tuple(title for title in found if isinstance(title, str))


def _number(values: Mapping[str, Any], key: str, file: Path) -> float | None:
    value = values.get(key)
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise ModelError(f"{file} is damaged: {key} must be a number")
    return value


def last_step(metrics: Path) -> int | None:
    """The step of the last whole line of metrics.jsonl; None if there is none."""
    with contextlib.suppress(OSError), open(metrics, "rb") as stream:
        stream.seek(max(stream.seek(0, os.SEEK_END) - LAST_LINES, 0))
        for line in reversed(stream.read(LAST_LINES).splitlines()):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                step = parse_json(line.decode("utf-8"))["step"]
                if isinstance(step, int):
                    return step
    return None


def sizes(directory: Path) -> tuple[int, int]:
    """The bytes of the files below a run directory, and of those in `checkpoints/`; links are not followed."""
    inside = _size(directory / "checkpoints")
    return _size(directory, skip="checkpoints") + inside, inside


def _size(directory: Path | str, skip: str | None = None) -> int:
    total = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if not entry.is_dir(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
                elif entry.name != skip:
                    total += _size(entry.path)
    return total


def _modified(path: Path) -> datetime.datetime | None:
    """When a file was written, in the local time zone."""
    try:
        return datetime.datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    except (OSError, ValueError, OverflowError):
        return None


def _parsed(text: str | None) -> datetime.datetime | None:
    """A time in ISO 8601; None if it is not one, or has no time zone."""
    with contextlib.suppress(ValueError):
        if text is not None and (found := datetime.datetime.fromisoformat(text)).tzinfo is not None:
            return found
    return None
