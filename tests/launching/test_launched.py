"""Runs that torchrun and accelerate start: the losses of one process, failures, restarts and requests to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.testing.launchers import runs

RUN = ("train", "--adapter", "full", "--device", "cpu", "--max-length", "64", "--set", "data.limit=60")
RUN = (*RUN, "--set", "train.sample_tokens=2", "--set", "train.save_every=2")
TWO = ("--launcher-opt", "processes=2", "--batch-size", "2")
ROUNDING = 1e-6
Cli = Callable[..., Any]


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "smollm3_finetune.main", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def after_steps(command: subprocess.Popen[str], run: str, steps: int) -> dict[int, int]:
    """The processes of the run by rank, when it has taken these steps."""
    import psutil

    metrics = Path(run, "metrics.jsonl")
    while command.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= steps):
        time.sleep(0.05)
    assert command.poll() is None, command.communicate()
    found = {}
    for process in psutil.Process(command.pid).children(recursive=True):
        rank = process.environ().get("RANK")
        if rank is not None:
            found[int(rank)] = process.pid
    return found


def ended(command: subprocess.Popen[str], processes: Sequence[int]) -> str:
    """What the command printed, after it left no process behind."""
    _, said = command.communicate(timeout=300)
    assert not [pid for pid in processes if runs(pid)]
    return said


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_have_the_losses_of_one(cli: Cli, launcher: str) -> None:
    alone = cli(*RUN, "--json", "--max-steps", "4", "--batch-size", "4", "--output", "alone")
    assert alone.code == 0, alone.stderr
    both = cli(*RUN, "--json", "--max-steps", "4", *TWO, "--launcher", launcher, "--output", "both")
    assert both.code == 0, both.stderr
    one, two = json.loads(alone.stdout), json.loads(both.stdout)
    assert losses("both") == pytest.approx(losses("alone"), rel=ROUNDING)
    assert two["after"]["held_out_loss"] == pytest.approx(one["after"]["held_out_loss"], rel=ROUNDING)
    assert (two["run"], two["tokens"]) == ("both", one["tokens"])
    assert json.loads(Path("both/versions.json").read_text())["processes"] == 2
    assert both.stderr.count("step 1/4") == 1
    assert "Warning" not in both.stderr and "***" not in both.stderr


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_which_continues_exactly(cli: Cli, rank: int) -> None:
    launched = (*RUN, "--max-steps", "40", *TWO, "--launcher", "torchrun")
    command = started(*launched, "--output", "run")
    processes = after_steps(command, "run", 5)
    os.kill(processes[rank], signal.SIGKILL)
    said = ended(command, [*processes.values()])
    assert command.returncode == 1
    error, hint = said.splitlines()[-2:]
    assert error.startswith(f"error: process {rank} was killed by SIGKILL; step ")
    assert hint == "  hint: to continue: smollm3 train --resume run"
    assert "Traceback" not in said
    assert json.loads(Path("run/error.json").read_text())["message"] in error

    resumed = cli(*hint.partition("smollm3 ")[2].split())
    assert resumed.code == 0, resumed.stderr
    whole = cli(*launched, "--output", "whole")
    assert whole.code == 0, whole.stderr
    assert losses("run") == losses("whole")
    assert Path("run/adapter/model.safetensors").read_bytes() == Path("whole/adapter/model.safetensors").read_bytes()


@pytest.mark.long
def test_a_killed_process_is_started_again(cli: Cli) -> None:
    launched = (*RUN, "--max-steps", "30", *TWO, "--launcher", "torchrun")
    command = started(*launched, "--launcher-opt", "restarts=1", "--output", "run")
    processes = after_steps(command, "run", 5)
    os.kill(processes[1], signal.SIGKILL)
    said = ended(command, [*processes.values()])
    assert command.returncode == 0, said
    assert said.count("step 30/30") == 1
    whole = cli(*launched, "--output", "whole")
    assert whole.code == 0, whole.stderr
    assert Path("run/adapter/model.safetensors").read_bytes() == Path("whole/adapter/model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(("launcher", "name"), [("torchrun", "SIGTERM"), ("accelerate", "SIGINT")])
def test_a_request_to_stop_saves_the_run_and_leaves_no_process(launcher: str, name: str) -> None:
    command = started(*RUN, "--max-steps", "500", *TWO, "--launcher", launcher, "--output", "run")
    processes = after_steps(command, "run", 3)
    command.send_signal(getattr(signal, name))
    said = ended(command, [*processes.values()])
    assert command.returncode == 128 + getattr(signal, name)
    error, hint = said.splitlines()[-2:]
    assert error.startswith(f"error: stopped by {name}; step ") and "run/checkpoints/checkpoint-" in error
    assert hint == "  hint: to continue: smollm3 train --resume run"


@pytest.mark.long
def test_two_machines_on_one_computer_train_one_run(cli: Cli) -> None:
    import socket

    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    alone = cli(*RUN, "--max-steps", "3", "--batch-size", "4", "--output", "alone")
    assert alone.code == 0, alone.stderr
    two = (
        "--launcher-opt",
        "nodes=2",
        "--launcher-opt",
        "processes=1",
        "--launcher-opt",
        f"rendezvous=127.0.0.1:{port}",
    )
    common = (*RUN, "--max-steps", "3", "--batch-size", "2", "--launcher", "torchrun", *two, "--output", "run")
    first = started(*common, "--json")
    second = started(*common, "--launcher-opt", "node_rank=1")
    out, said = first.communicate(timeout=300)
    assert first.returncode == 0, said
    _, joined = second.communicate(timeout=100)
    assert second.returncode == 0, joined
    assert "this machine joins the run" in joined and "step 1/3" not in joined
    assert json.loads(out)["steps"] == 3
    assert losses("run") == pytest.approx(losses("alone"), rel=ROUNDING)
    assert json.loads(Path("run/versions.json").read_text())["processes"] == 2
