"""A run that is resumed with another number of processes: in float64 the losses and the adapter of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import exact_runs
import pytest
from safetensors.torch import load_file

from smollm3_finetune.testing.small import write_small_model

EXACT = 1e-9
"""Relative, and absolute for values below 1. At most 1.3e-16 was seen in losses and 8.5e-16 in weights, and 0 if each
batch has the same rows."""
SINGLE = 1e-6
"""The same in float32: at most 2.0e-7 was seen in losses and 1.1e-7 in weights."""
STEPS = 5
ROWS = 11
"""Three steps of 4 rows in a pass, the last of 3; so the run has two passes."""
CASES: dict[str, tuple[str, ...]] = {
    "lora": ("--adapter", "lora"),
    "packed": ("--adapter", "lora", "--set", "train.packing=true"),
    "full": ("--adapter", "full"),
    "halved": ("--adapter", "lora"),
    "grouped": ("--adapter", "full", "--set", "train.group_by_length=true"),
    "measured": ("--adapter", "lora", "--set", "train.eval_every=2", "--set", "train.keep_best=true"),
    "schedule": ("--adapter", "dora", "--set", "train.optimizer=adafactor", "--set", "train.schedule=cosine"),
}


def write_files() -> None:
    write_small_model(Path("small"), biases=False)
    for name, numbers in (("rows", range(ROWS)), ("held_out", range(100, 106))):
        lines = (
            json.dumps(
                {"prompt": f"What is {n} + {n}?", "completion": f"It is {2 * n}, {'which is even, ' * (n % 5)}."}
            )
            for n in numbers
        )
        Path(f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def arguments(case: str, output: str, division: tuple[int, int] | None = None, *, dtype: str) -> list[str]:
    batch_size, accumulation = division or ((4, 1) if case == "halved" else (2, 2))
    return [
        "train", "--model", "small", "--device", "cpu", "--dtype", dtype, *CASES.get(case, ()), "--data", "rows.jsonl",
        "--validation", "held_out.jsonl", "--max-length", "64", "--max-steps", str(STEPS), "--learning-rate", "1e-3",
        "--batch-size", str(batch_size), "--set", f"train.gradient_accumulation={accumulation}",
        "--set", "train.save_every=1", "--set", "train.keep_checkpoints=9", "--set", "train.sample_tokens=1",
        "--set", "train.report=false", "--output", output,
    ]  # fmt: skip


def in_two_processes(runs: list[list[str]], dtype: str) -> None:
    Path("runs.json").write_text(json.dumps(runs), encoding="utf-8")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*launcher, exact_runs.__file__, "runs.json", dtype],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def cut(run: str, step: int, into: str) -> list[str]:
    """What a run leaves that was killed after a step, in another directory; returns the command that resumes it."""
    shutil.copytree(run, into)
    for name in ("report.json", "trained.json"):
        Path(into, name).unlink(missing_ok=True)
    shutil.rmtree(Path(into, "adapter"))
    for checkpoint in Path(into, "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    return ["train", "--resume", into]


def steps_of(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def compare(run: str, whole: str, exact: float = EXACT) -> None:
    ours, theirs = steps_of(run), steps_of(whole)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        for key in row.keys() & {"loss", "grad_norm", "held_out_loss", "learning_rate"}:
            assert row[key] == pytest.approx(other[key], rel=exact, abs=exact), (run, row["step"], key)
    reports = [json.loads(Path(path, "report.json").read_text()) for path in (run, whole)]
    assert reports[0]["tokens"] == reports[1]["tokens"]
    assert reports[0]["after"]["held_out_loss"] == pytest.approx(reports[1]["after"]["held_out_loss"], rel=exact)
    tensors = [load_file(next(Path(path, "adapter").glob("*.safetensors"))) for path in (run, whole)]
    assert tensors[0].keys() == tensors[1].keys()
    for key, tensor in tensors[0].items():
        assert float((tensor.double() - tensors[1][key].double()).abs().max()) <= exact, (run, key, tensor.dtype)


def resumed_twice(cases: Sequence[str], dtype: str, more: list[list[str]]) -> None:
    """Whole runs, and runs that are resumed with two processes, then with one; and `more` runs with two processes."""
    write_files()
    exact_runs.run([arguments(case, f"{case}-whole", dtype=dtype) for case in cases], dtype)
    in_two_processes([*(cut(f"{case}-whole", 1, f"{case}-two") for case in cases), *more], dtype)
    exact_runs.run([cut(f"{case}-two", STEPS - 1, f"{case}-one") for case in cases], dtype)
    for case in cases:
        for run in ("two", "one"):
            compare(f"{case}-{run}", f"{case}-whole", EXACT if dtype == "float64" else SINGLE)


@pytest.mark.long
def test_one_two_and_one_processes_are_one_run(isolated: Path) -> None:
    resumed_twice(("full",), "float64", [])
    began = json.loads(Path("full-one/versions.json").read_text())
    assert (began["processes"], began["batch_size"], began["gradient_accumulation"]) == (1, 2, 2)


@pytest.mark.long
@pytest.mark.plugins
@pytest.mark.parametrize(
    ("cases", "dtype"),
    [
        pytest.param(tuple(CASES), "float64", id="float64"),
        pytest.param(("lora", "packed", "halved"), "float32", id="float32"),
    ],
)
def test_a_run_that_began_with_two_processes_ends_with_one(cases: tuple[str, ...], dtype: str, isolated: Path) -> None:
    """Also the chain of the test above, for every case. Grouped rows are taken as many at a time as by one process."""
    divided = {case: (1, 2) if case == "grouped" else (2, 1) for case in cases}
    began = [arguments(case, f"{case}-began", division, dtype=dtype) for case, division in divided.items()]
    resumed_twice(cases, dtype, began)
    exact_runs.run([cut(f"{case}-began", 2, f"{case}-alone") for case in cases], dtype)
    for case in cases:
        for run in ("began", "alone"):
            compare(f"{case}-{run}", f"{case}-whole", EXACT if dtype == "float64" else SINGLE)
