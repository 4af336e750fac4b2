"""torchrun starts the processes again after one was killed: the run continues from its newest checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from smollm3_finetune.testing.commands import Result

pytestmark = pytest.mark.long
STEPS = 12
RUN = (
    *("train", "--adapter", "full", "--device", "cpu", "--max-length", "64", "--set", "data.limit=60", "--dtype"),
    *("float64", "--max-steps", str(STEPS), "--set", "train.sample_tokens=1", "--set", "train.report=false"),
    *("--set", "train.save_every=1", "--set", "train.gradient_accumulation=2"),
)
ROUNDING = 1e-6
"""Relative; transformers computes some normalizations in float32."""
PATIENCE = 300.0


def steps_of(run: str) -> list[dict[str, Any]]:
    file = Path(run, "metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def until(condition: Callable[[], bool], program: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert program.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def worker(program: subprocess.Popen[str], rank: str) -> psutil.Process:
    """The process of a rank."""
    for process in psutil.Process(program.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RANK") == rank:
                return process
    raise AssertionError(f"there is no process {rank}")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_process_is_started_again_and_the_run_continues(cli: Callable[..., Result], rank: str) -> None:
    alone = cli(*RUN, "--batch-size", "2", "--output", "alone")
    assert alone.code == 0, alone.stderr
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with subprocess.Popen(
        [*launcher, "--max-restarts", "1", "-m", "smollm3_finetune.main", *RUN, "--batch-size", "1", "--output", "both",
         "--resume", "auto"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as program:  # fmt: skip
        until(lambda: len(steps_of("both")) > 3, program)
        worker(program, rank).send_signal(signal.SIGKILL)
        output, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0, output
    assert "the run both is resumed" in output
    assert Path("both/report.json").exists()
    ours, theirs = steps_of("both"), steps_of("alone")
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for row, other in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=ROUNDING), row["step"]
