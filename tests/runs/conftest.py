"""Runs on disk without training: the files that `train` writes, with the values of a test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.config.load import Setting, assemble
from smollm3_finetune.files.checksums import write_checksums
from smollm3_finetune.runs.facts import FACTS, record_facts
from smollm3_finetune.runs.rundir import RunDir

NAMES = {"loader.name": "smollm3-finetune:tiny", "quant.name": "smollm3-finetune:none", "adapter.name": "acme:lora",
         "objective.name": "smollm3-finetune:sft"}  # fmt: skip


def write_run(
    path: str | Path,
    config: Mapping[str, Any] | None = None,
    *,
    after: float | None = 2.0,
    before: float = 3.0,
    verdict: str | None = None,
    checkpoints: Sequence[int] = (),
    steps: int = 4,
    planned: int = 4,
    error: Mapping[str, str] | None = None,
    started: str | None = None,
    tokens: str = "same",
) -> Path:
    """Write a run; without `after`, it has not finished. `config` has values by key, such as `train.epochs`."""
    run = RunDir(Path(path))
    settings = {**NAMES, **(config or {})}
    made = assemble([[Setting(key=tuple(k.split(".")), value=v, origin="test") for k, v in settings.items()]]).config
    run.make()
    versions = {"plugins": {"acme": "1"}, "libraries": {"torch": "2"}, "plugin_files": {}, "tokens": tokens}
    run.create(made, {**versions, FACTS: {"started": started}}, lambda text: None)
    record_facts(run, made, ["rows.jsonl"], planned)
    put(run.before, {"held_out_loss": before})
    lines = [{"step": step, "loss": 4.0 - step / 10, "learning_rate": 0.1} for step in range(1, steps + 1)]
    run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for step in checkpoints:
        for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
            put(run.saved.at(step) / name, {"global_step": step, "log_history": []})
    if error is not None:
        put(run.error, error)
    if after is not None:
        put(run.trained, {"steps": steps, "tokens": 100})
        put(run.adapter / "smollm3.json", {"model": "tiny"})
        write_checksums(run.adapter)
        put(run.report, report_of(before, after, steps, verdict, len(checkpoints)))
    return run.path


def report_of(before: float, after: float, steps: int, verdict: str | None, saved: int) -> dict[str, Any]:
    """The content of report.json."""
    change = after - before
    comparison = {"rows": 43, "terms": 900, "before": before, "after": after, "difference": change,
                  "low": change - 0.25, "high": change + 0.25, "verdict": verdict, "smallest_difference": 0.25,
                  "rows_for_half": 172, "by_source": {}, "excluded_rows": 0}  # fmt: skip
    return {
        "run": "", "steps": steps, "tokens": 100, "seconds": 12.5, "checkpoints": {"saved": saved},
        "rows": [{"title": "rows.jsonl", "train": 36, "held_out": 4}],
        "prompt": [{"role": "user", "content": "Who?"}], "before": {"held_out_loss": before, "sample": "Me."},
        "after": {"held_out_loss": after, "sample": "You."}, **({"comparison": comparison} if verdict else {}),
    }  # fmt: skip


def put(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """The function `write_run`."""
    return write_run
