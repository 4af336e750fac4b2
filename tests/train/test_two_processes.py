"""Two processes that train together on a CPU: the same losses as with one, and one run directory, written once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

RUN = ("train", "--json", "--adapter", "full", "--device", "cpu", "--max-length", "64")
OUT_OF_TREE = Path(__file__).parents[1] / "out_of_tree"
STEPS = 3
QUICK = (
    *("--max-steps", str(STEPS), "--set", "data.limit=60", "--set", "train.sample_tokens=2"),
    *("--set", "train.gradient_accumulation=2", "--set", f"train.save_every={STEPS}"),
)
ROUNDING = 1e-5
"""Relative. The same terms are summed in another order, in float32: 2e-7 was seen. The mean of the two processes' own
means, which is what is wrong most easily, was off by 7e-3 at the first step, since
they learn from different numbers of tokens."""


def in_two_processes(
    *arguments: str, program: Sequence[str] = ("-m", "smollm3_finetune.main")
) -> subprocess.CompletedProcess[str]:
    """Run `smollm3 ARGUMENTS`, or another program, with torchrun."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return subprocess.run(
        [*launcher, *program, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


SLOW_TO_LET_GO = """
import os
import torch.distributed as dist
from smollm3_finetune.main import main

connect = dist.init_process_group

def connect_with_idle_threads(*args, **kwargs):
    connect(*args, **kwargs)
    dist.barrier()
    core = {min(os.sched_getaffinity(0))}
    for thread in map(int, os.listdir("/proc/self/task")):
        os.sched_setaffinity(thread, core)
        with open(f"/proc/self/task/{thread}/comm") as name:
            if "gloo_runloop" in name.read():
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
                open(f"idle-{thread}", "w").close()

dist.init_process_group = connect_with_idle_threads
main()
"""
"""`smollm3`, whose threads that talk to the other process run only when nothing else does: the last tensor is let go of
after Python has begun to end."""


def launched_by_accelerate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`smollm3 ARGUMENTS` under `accelerate launch`, which starts one process if it is told --cpu."""
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    quiet = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    return subprocess.run(
        [*launcher, *quiet, "-m", "smollm3_finetune.main", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_like_one(cli: Callable[..., Any]) -> None:
    alone = cli(*RUN, *QUICK, "--batch-size", "4", "--output", "alone")
    assert alone.code == 0, alone.stderr
    both = in_two_processes(*RUN, *QUICK, "--batch-size", "2")
    assert both.returncode == 0, both.stderr

    (run,) = Path("runs").iterdir()  # its name contains the time, which the two processes read at different moments
    assert {f.name for f in (run / "checkpoints" / f"checkpoint-{STEPS}").glob("rng_state_*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    one, two = json.loads(alone.stdout), json.loads(both.stdout)  # one report, so only one process printed it
    assert two["tokens"] == one["tokens"]
    assert both.stderr.count("step 1/") == 1
    assert "Warning" not in both.stderr
    assert [row["step"] for row in steps_of(run)] == [1, 2, 3]
    for ours, theirs in zip(steps_of(run), steps_of(Path("alone")), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=ROUNDING)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=10 * ROUNDING)
        assert ours["learning_rate"] == theirs["learning_rate"]
    assert two["after"]["held_out_loss"] == pytest.approx(one["after"]["held_out_loss"], rel=ROUNDING)
    assert two["after"]["held_out_loss"] < two["before"]["held_out_loss"]


@pytest.mark.long
@pytest.mark.plugins
def test_accelerate_launch_with_lora_and_packing_gives_the_curve_of_one_process(cli: Callable[..., Any]) -> None:
    common = ("train", "--json", "--adapter", "lora", "--device", "cpu", "--max-length", "128", "--max-steps", "5")
    common = (*common, "--set", "data.limit=60", "--set", "train.sample_tokens=2", "--set", "train.packing=true")
    alone = cli(*common, "--batch-size", "2", "--output", "alone")
    assert alone.code == 0, alone.stderr
    both = launched_by_accelerate(*common, "--batch-size", "1", "--output", "both")
    assert both.returncode == 0, both.stderr
    assert "find_unused_parameters" not in both.stderr
    assert json.loads(Path("both/versions.json").read_text())["processes"] == 2
    one, two = steps_of(Path("alone")), steps_of(Path("both"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=ROUNDING)
    assert two[-1]["loss"] < 0.9 * two[0]["loss"]
    assert json.loads(both.stdout)["tokens"] == json.loads(alone.stdout)["tokens"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((), id="rows", marks=pytest.mark.long),
        pytest.param(("--set", "train.packing=true"), id="packing", marks=pytest.mark.long),
        pytest.param(
            ("--set", "train.padding=always", "--set", "train.group_by_length=true"),
            id="padded",
            marks=pytest.mark.long,
        ),
    ],
)
def test_passes_that_do_not_divide_evenly_are_those_of_one_process(
    cli: Callable[..., Any], changes: tuple[str, ...]
) -> None:
    """Two passes, at the end of which a process has less to do than the other, or nothing."""
    rows = ("--set", "data.limit=29", "--set", "data.held_out=0", "--set", "train.sample_tokens=2", "--epochs", "2")
    rows = (*rows, *changes)
    alone = cli(*RUN, *rows, "--batch-size", "4", "--output", "alone")
    assert alone.code == 0, alone.stderr
    both = in_two_processes(*RUN, *rows, "--batch-size", "2", "--output", "both")
    assert both.returncode == 0, both.stderr
    one, two = steps_of(Path("alone")), steps_of(Path("both"))
    assert len(one) == len(two) >= 4
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=10 * ROUNDING)
    assert json.loads(both.stdout)["tokens"] == json.loads(alone.stdout)["tokens"]


@pytest.mark.long
def test_resuming_in_the_second_pass_uses_the_rows_of_that_pass() -> None:
    """24 rows, 22 or so to train on: six steps of two times two make the first pass."""
    rows = ("--set", "data.limit=24", "--set", "train.sample_tokens=2", "--set", "train.schedule=constant")
    steps = ("--max-steps", "10", "--set", "train.save_every=8")
    whole = in_two_processes(*RUN, *rows, *steps, "--batch-size", "2", "--output", "run")
    assert whole.returncode == 0, whole.stderr
    before = steps_of(Path("run"))
    assert before[6]["epoch"] > 1
    shutil.rmtree("run/checkpoints/checkpoint-10")
    resumed = in_two_processes("train", "--json", "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    after = steps_of(Path("run"))
    assert [row["step"] for row in after] == list(range(1, 11))
    assert [row["loss"] for row in after] == [row["loss"] for row in before]
    assert json.loads(resumed.stdout)["tokens"] == json.loads(whole.stdout)["tokens"]


@pytest.mark.long
def test_a_loss_that_is_not_finite_ends_both_processes() -> None:
    """If only one process stopped, the other would wait for its gradients until the timeout."""
    plugins = [a for n in ("scale", "failing") for a in ("-p", str(OUT_OF_TREE / f"{n}_adapter.py"))]
    failing = (*plugins, "--adapter", "failing", "--adapter-opt", "how=gradients")
    both = in_two_processes(*RUN, *QUICK, "--batch-size", "2", *failing, "--output", "out")
    assert both.returncode != 0
    assert "the gradient norm became" in both.stderr and "has the weights of step 1" in both.stderr
    assert Path("out/checkpoints/checkpoint-1").is_dir()
    assert not Path("out/adapter").exists()


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="needs Linux's scheduling classes")
def test_processes_destroy_their_group_before_they_exit() -> None:
    """Otherwise a completed run sometimes ends with SIGABRT."""
    Path("slow.py").write_text(SLOW_TO_LET_GO)
    both = in_two_processes(*RUN, *QUICK, "--batch-size", "2", "--output", "out", program=("slow.py",))
    assert len(list(Path().glob("idle-*"))) >= 2, "no thread was made idle"
    assert both.returncode == 0, both.stderr


@pytest.mark.long
def test_two_processes_end_early_together_and_publish_the_best_adapter() -> None:
    rows = ("--set", "data.limit=24", "--set", "data.held_out=0.3", "--set", "train.sample_tokens=2")
    constant = ("--set", "train.schedule=constant", "--set", "train.warmup=0", "--learning-rate", "1e-2")
    judged = ("--set", "train.eval_every=2", "--set", "train.keep_best=true", "--set", "train.stop_after=1")
    saved = ("--set", "train.save_every=2", "--set", "train.keep_checkpoints=9", "--set", "train.sample_every=2")
    both = in_two_processes(
        *(*RUN, *rows, *constant, *judged, *saved), "--max-steps", "20", "--batch-size", "4", "--output", "run"
    )
    assert both.returncode == 0, both.stderr
    report = json.loads(both.stdout)
    losses = {row["step"]: row["held_out_loss"] for row in steps_of(Path("run")) if "held_out_loss" in row}
    best, last = report["best"]["step"], report["steps"]
    assert report["stopped_early"]["planned_steps"] == 20
    assert last == max(losses) == best + 2, "the first measurement that was not lower"
    assert report["after"]["held_out_loss"] == losses[best] == min(losses.values())
    published = Path("run/adapter/model.safetensors").read_bytes()
    assert published == Path(f"run/checkpoints/checkpoint-{best}/model.safetensors").read_bytes()
    samples = [json.loads(line)["step"] for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert samples == sorted(losses), "once, by one process"
    again = in_two_processes("train", "--resume", "run")
    assert again.returncode != 0
    assert f"ended early after {last} of 20 steps" in again.stderr
