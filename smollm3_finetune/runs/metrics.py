"""The curves of a run: its losses by step, from metrics.jsonl and the measurements before and after training."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.json import json_object
from smollm3_finetune.files.limits import JSON_SIZE, parse_json, read_bytes
from smollm3_finetune.runs.rundir import RunDir

Points = list[tuple[int, float]]
"""Optimizer steps and values."""


@dataclass(frozen=True)
class Losses:
    """Losses in nats per supervised token, by step."""

    training: Points
    held_out: Points
    """At step 0 before training; after it, at the step of the published adapter."""


def losses_of(run: RunDir) -> Losses:
    """The losses of a run; what is missing or damaged is left out."""
    training, held_out = [], {}
    for row in metric_rows(run.metrics):
        if (loss := _finite(row.get("loss"))) is not None:
            training.append((row["step"], loss))
        if (loss := _finite(row.get("held_out_loss"))) is not None:
            held_out[row["step"]] = loss
    report = json_object(run.report)
    before = report.get("before") or json_object(run.before)
    if (loss := _finite(_get(before, "held_out_loss"))) is not None:
        held_out[0] = loss
    best = _get(report.get("best"), "step")  # the adapter of an earlier step may be the one that was published
    last = best if isinstance(best, int) else report.get("steps")
    if isinstance(last, int) and (loss := _finite(_get(report.get("after"), "held_out_loss"))) is not None:
        held_out[last] = loss
    return Losses(training, sorted(held_out.items()))


def rows_of(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a file of a run that are objects with a step, and the objects; none if the file does not exist."""
    if not file.exists():
        return
    try:
        text = read_bytes(file, JSON_SIZE).decode("utf-8", errors="replace")
    except (OSError, ValueError) as e:
        raise ModelError(f"{file} cannot be read: {e}", hint=f"rm {shlex.quote(str(file))}") from e
    for line in text.split("\n"):  # not splitlines(): an answer may contain U+2028, which JSON does not escape
        with contextlib.suppress(ValueError):
            row = parse_json(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield line, row


def metric_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The objects with a step in a file of a run, such as metrics.jsonl; what cannot be read is left out."""
    with contextlib.suppress(ModelError):  # it cannot be read
        yield from (row for _, row in rows_of(file))


def _get(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, Mapping) else None


def _finite(value: Any) -> float | None:
    """A finite number; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None
