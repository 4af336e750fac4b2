"""Predictions beside the memory that real runs take, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.load import Setting
from smollm3_finetune.memory.estimate import estimate
from smollm3_finetune.memory.memory_plan import MemoryPlan
from smollm3_finetune.progress import Silent
from smollm3_finetune.train.start import plan_training

RUN = """
import json, sys, threading, time
from pathlib import Path

from smollm3_finetune.model_files.imports import import_for_training

import_for_training()
import smollm3_peft.adapter

from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.load import Setting
from smollm3_finetune.progress import Silent
from smollm3_finetune.train.display import NoDisplay
from smollm3_finetune.train.start import plan_training


def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


values = json.loads(sys.argv[1])
floor, peak, ended = anonymous(), 0, False


def watch():
    global peak
    while not ended:
        peak = max(peak, anonymous())
        time.sleep(0.002)


run = plan_training(
    [Setting(key=tuple(k.split(".")), value=v, origin="test") for k, v in values.items()],
    find_plugins=lambda names: discover(PluginSelection.of(tuple(names))), progress=Silent(), warn=print,
)
thread = threading.Thread(target=watch)
thread.start()
run.train(NoDisplay())
ended = True
thread.join()
print(peak - floor)
"""


def predicted(values: dict[str, Any]) -> MemoryPlan:
    run = plan_training(
        [Setting(key=tuple(k.split(".")), value=v, origin="test") for k, v in values.items()],
        find_plugins=lambda names: discover(PluginSelection.of(tuple(names))), progress=Silent(), warn=print,
    )  # fmt: skip
    return estimate(run.plan, run.registry)


def measured(values: dict[str, Any]) -> int:
    """The peak of a run in a process of its own, in bytes."""
    done = subprocess.run([sys.executable, "-c", RUN, json.dumps(values)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("adapter", "length", "recomputes"),
    [("full", 128, False), pytest.param("lora", 512, True, marks=pytest.mark.long)],
)
def test_a_run_takes_what_was_predicted(tmp_path: Path, adapter: str, length: int, recomputes: bool) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps({"text": " the" * 2 * length}) + "\n") * 4)
    values = {
        "model": "tiny", "quant.name": "none", "adapter.name": adapter, "data.path": str(rows), "data.held_out": 0,
        "data.max_length": length, "data.long_text": "cut", "train.batch_size": 2, "train.max_steps": 2,
        "train.gradient_checkpointing": recomputes, "train.save_minutes": None, "train.report": False,
        "train.sample_tokens": 1, "train.sample_prompt": "Hi", "device": "cpu", "output": str(tmp_path / "run"),
    }  # fmt: skip
    found = predicted(values)
    assert found.low <= measured(values) <= found.high
