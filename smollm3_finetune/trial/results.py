"""What a trial found: one result for each pair, the machine, and the file that holds them. Light: imports no torch.

The file of `smollm3 doctor --try --report FILE` is JSON:

    {
      "format": 1, "kind": "smollm3 trial", "date": "2026-11-30", "seconds": 61.2, "command": "smollm3 doctor --try",
      "machine": {"device": "cuda:0", "name": "the name of the card", …}, "dtype": "float32",
      "cells": [
        {"quantizer": "DISTRIBUTION:NAME", "adapter": "DISTRIBUTION:NAME",
         "status": "works", "fails" or "refused", "sentence": "what differs, or null",
         "steps": {"load": true, …}, "figures": {"gradients": 1e-7, …}, "versions": {"torch": "2.13.0", …},
         "seconds": 4.1}
      ]
    }

It has no name of a host, a user or a directory, so that it can be sent to others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from smollm3_finetune.compatibility.results import Result, Use
from smollm3_finetune.errors import ConfigError, SmolLM3Error
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.writing import write_text

FORMAT, KIND = 1, "smollm3 trial"
LARGEST = 1e18
"""No figure is as large."""


class Step(StrEnum):
    """The steps of a trial, in the order in which a fault in one of them is reported."""

    LOAD = "load"
    """The quantizer loads the model, and its layers compute with the weights that they state."""
    START = "start"
    """A fresh adapter attaches, and the model computes the same in each evaluation, and the same as its base."""
    TRAIN = "train"
    """A run takes its steps; losses, gradients and logits equal those of the dense copy in float64 on the CPU."""
    RESUME = "resume"
    """The saved adapter restores, and a run that is resumed in its middle ends as the uninterrupted one."""
    MERGE = "merge"
    """The merged model passes the check of `smollm3 merge`."""


class Status(StrEnum):
    WORKS = "works"
    FAILS = "fails"
    REFUSED = "refused"
    """An error before weights are read: an operation, a device or an option is missing."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One quantizer with one adapter."""

    quantizer: str
    """`distribution:name`"""
    adapter: str
    status: Status
    sentence: str | None = None
    """What differs, or why it was not tried; None if it works."""
    steps: Mapping[str, bool | None] = field(default_factory=dict)
    """Whether each step passed; None: not reached."""
    figures: Mapping[str, float | None] = field(default_factory=dict)
    """Relative errors, `tokens_per_second`, and `memory` in bytes."""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def names(self) -> tuple[str, str]:
        """The names without their distributions."""
        return self.quantizer.rpartition(":")[2], self.adapter.rpartition(":")[2]


@dataclass(frozen=True, kw_only=True)
class TrialReport:
    machine: Mapping[str, Any]
    """`device`, its `name`, and what else is known about the machine."""
    dtype: str
    date: str
    command: str
    seconds: float
    cells: Sequence[Tried]

    @property
    def device(self) -> str:
        """The kind of device: `cpu`, `cuda`, …"""
        return str(self.machine["device"]).partition(":")[0]

    @property
    def failed(self) -> list[Tried]:
        return [c for c in self.cells if c.status is Status.FAILS]

    def results(self) -> Iterator[Result]:
        """The pairs that were tried, as results of `smollm3 compat`: to train and to merge."""
        for cell in self.cells:
            if cell.status not in (Status.WORKS, Status.FAILS):
                continue
            uses = {Use.TRAIN: (Step.LOAD, Step.START, Step.TRAIN, Step.RESUME), Use.MERGE: (Step.LOAD, Step.MERGE)}
            for use, steps in uses.items():
                passed = [cell.steps.get(step) for step in steps]
                if False not in passed and None in passed:
                    continue  # not reached
                holds = False not in passed
                yield Result(
                    quantizer=cell.quantizer, adapter=cell.adapter, purpose=use, device=self.device, date=self.date,
                    command=self.command, versions=cell.versions, holds=holds,
                    note=None if holds else cell.sentence, figures=cell.figures,
                )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "kind": KIND, **asdict(self), "cells": [asdict(c) for c in self.cells]}


def write_report(report: TrialReport, file: Path) -> None:
    with writing(file, left="it is unchanged"):
        write_text(file, json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n")


def read_report(file: Path, flag: str) -> TrialReport:
    """The report in a file that somebody may have sent. Raises ConfigError, which names `flag`, if it is none."""
    try:
        return _report(load_json(file))
    except SmolLM3Error:
        raise
    except OSError as e:
        raise ConfigError(f"{flag}: {file} cannot be read: {e.strerror or e}") from e
    except (ValueError, TypeError, KeyError) as e:
        reason = f"it has no {e}" if isinstance(e, KeyError) else " ".join(str(e).split())
        raise ConfigError(
            f"{flag}: {file} is not a report of a trial: {reason}",
            hint="to write one: smollm3 doctor --try --report FILE",
        ) from e


def _report(about: Any) -> TrialReport:
    """Check what a file holds. Raises ValueError, TypeError or KeyError if it is not a report."""
    if not isinstance(about, Mapping) or about.get("kind") != KIND:
        raise ValueError(f"expected an object of the kind {KIND!r}")
    if about.get("format") != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {about.get('format')!r}")
    machine = _of(about, "machine", Mapping)
    for name in ("device", "name"):
        _of(machine, name, str)
    return TrialReport(
        machine=machine,
        cells=tuple(_cell(entry) for entry in _of(about, "cells", list)),
        seconds=float(_of(about, "seconds", int | float)),
        **{name: _of(about, name, str) for name in ("dtype", "date", "command")},
    )


def _cell(about: Any) -> Tried:
    if not isinstance(about, Mapping):
        raise TypeError(f"a cell must be an object, not {about!r}")
    names = {name: _of(about, name, str) for name in ("quantizer", "adapter")}
    if wrong := next((n for n, full in names.items() if not full.partition(":")[2]), None):
        raise ValueError(f"{wrong!r} must be 'distribution:name', not {names[wrong]!r}")
    sentence = None if about.get("sentence") is None else _of(about, "sentence", str)
    values: dict[str, tuple[Any, ...]] = {
        "steps": (bool, type(None)),
        "figures": (int, float, type(None)),
        "versions": (str,),
    }
    found = {name: _of(about, name, Mapping) for name in values}
    for name, kinds in values.items():
        if not all(isinstance(v, kinds) and _can_be_shown(v) for v in found[name].values()):
            raise TypeError(f"{name!r} must map names to values, not {str(found[name])[:60]!r}")
    status = Status(_of(about, "status", str))
    return Tried(**names, **found, status=status, sentence=sentence, seconds=float(_of(about, "seconds", int | float)))


def _of(about: Mapping[str, Any], name: str, kind: Any) -> Any:
    value = about[name]
    if not isinstance(value, kind) or not _can_be_shown(value):
        raise TypeError(f"{name!r} has a wrong value: {str(value)[:60]!r}")
    return value


def _can_be_shown(value: Any) -> bool:
    """Whether a text has no character that a terminal obeys, and a number is one that can be shown."""
    if isinstance(value, str):
        return value.isprintable()
    return not isinstance(value, int | float) or -LARGEST < value < LARGEST
