"""What runs on this machine took: the predicted and the measured peak of each, in one file of the cache.

<cache>/memory/runs.jsonl     a line for each finished run whose memory was measured
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.config.load import as_dict

if TYPE_CHECKING:
    from smollm3_finetune.memory.memory_plan import MemoryPlan
    from smollm3_finetune.train.plan import RunPlan

NEWEST = 200
"""The number of lines that are read."""
LARGEST_FILE = 1_000_000
"""Bytes of the end of the file that are read."""
TRAIN_KEYS = ("padding", "packing", "logits", "reference", "ship_as", "gradient_accumulation", "base_dropout",
              "optimizer", "gradient_checkpointing", "compile")  # fmt: skip
"""The keys of `train` that change the memory of a step, except the batch size."""


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """One finished run, or one probe."""

    device: str
    """`cpu` or the name of the GPU."""
    machine: str
    predicted: int
    """Bytes that the predictor states for the largest batch of the run, without a correction."""
    measured: int
    tokens: int
    """The tokens of that batch."""
    key: str
    """The same for runs that differ in their batches only; see `key_of`."""
    run: str
    """Its directory, or `probe`."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def key_of(plan: RunPlan) -> str:
    """The same for runs whose memory differs because of the size of their batches only."""
    config = as_dict(plan.config)
    sections = {name: config.get(name) for name in ("model", "loader", "quant", "adapter", "objective", "dtype")}
    if plan.optimizer is not None:
        sections["optimizer"] = config.get("optimizer")
    train = {name: config["train"].get(name) for name in TRAIN_KEYS}
    return fingerprint("memory", sections, train, plan.layout.processes, plan.layout.sharding)


def records_file(cache: Path) -> Path:
    return cache / "memory" / "runs.jsonl"


def record_run(plan: RunPlan, measured: Mapping[str, Any], predicted: MemoryPlan, run: str) -> MemoryRecord | None:
    """Add a run to the file, and return its record; None if its memory is unknown, or if the file cannot be written.

    `measured` is the `memory` of its report, and `predicted` the uncorrected prediction for its largest batch.
    """
    if "peak" not in measured or not measured.get("batch_tokens") or predicted.unknown:
        return None
    record = MemoryRecord(
        device=measured["device"],
        machine=platform.node(),
        predicted=predicted.peak,
        measured=measured["peak"],
        tokens=measured["batch_tokens"],
        key=key_of(plan),
        run=run,
    )
    file = records_file(plan.model.context.cache.root)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record.as_json()) + "\n")
    except OSError:
        return None
    return record


def largest_batch(plan: RunPlan, tokens: int) -> tuple[int, int]:
    """`length` and `batch` whose product is that of a run's largest batch, for the predictor."""
    batch = plan.config.train.batch_size
    return math.ceil(tokens / batch), batch


def read_records(cache: Path, device: str) -> list[MemoryRecord]:
    """The newest records of this machine and this kind of device. Damaged lines are left out."""
    try:
        with records_file(cache).open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(stream.tell() - LARGEST_FILE, 0))
            lines = stream.read().decode("utf-8", "replace").splitlines()[-NEWEST:]
    except OSError:
        return []
    found = (_record(line) for line in lines)
    return [r for r in found if r is not None and (r.device, r.machine) == (device, platform.node())]


def _record(line: str) -> MemoryRecord | None:
    try:
        about = json.loads(line)
        record = MemoryRecord(**{f.name: about[f.name] for f in fields(MemoryRecord)})
        numbers = (record.predicted, record.measured, record.tokens)
        return record if all(isinstance(n, int) and n > 0 for n in numbers) else None
    except (ValueError, TypeError, KeyError):
        return None
