"""A reference in two processes: the curve of one, with the start of the run in both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from toy_runs import losses

RUN = (
    *("train", "-p", "toy_pairs.py", "-p", "scale_adapter.py", "--objective", "toy-pairs", "--device", "cpu", "--json"),
    *("--data", "pairs.jsonl", "--max-length", "64", "--max-steps", "2", "--set", "train.sample_tokens=1"),
    *("--set", "data.held_out=0.25", "--set", "train.warmup=0"),
)
ROUNDING = 1e-5


def in_two_processes(*arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return subprocess.run(
        [*launcher, "-m", "smollm3_finetune.main", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        pytest.param("full", ("--objective-opt", "reference=start"), id="start"),
        pytest.param("full", ("--objective-opt", "reference=start", "--set", "train.reference=once"), id="start-once"),
        pytest.param("scale", (), id="base"),
    ],
)
def test_two_processes_have_the_curve_of_one(cli: Any, toy: ModuleType, adapter: str, options: tuple[str, ...]) -> None:
    rate = "1e-3" if adapter == "full" else "0.01"
    common = (*RUN, "--adapter", adapter, *options, "--set", f"train.learning_rate={rate}")
    alone = cli(*common, "--batch-size", "4", "--output", "alone")
    assert alone.code == 0, alone.stderr
    both = in_two_processes(*common, "--batch-size", "2", "--output", "both")
    assert both.returncode == 0, both.stderr
    assert losses("both") == pytest.approx(losses("alone"), rel=ROUNDING)
    assert losses("both")[1] < losses("both")[0]
    after = [json.loads(Path(name, "report.json").read_text())["after"]["held_out_loss"] for name in ("alone", "both")]
    assert after[1] == pytest.approx(after[0], rel=10 * ROUNDING)
    assert Path("both/start/trained.safetensors").is_file() == (adapter == "full")
