"""The learning rate of the first step, and after a run was extended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from smollm3_finetune.train.learning_rate import recompute, start_above_zero

Cli = Callable[..., Any]
QUICK = ("--adapter", "full", "--set", "data.limit=20", "--set", "train.sample_tokens=2", "--learning-rate", "1e-3")
SCHEDULES = ("cosine_with_min_lr", "cosine", "linear", "constant", "constant_with_warmup")


def rates(run: str) -> list[float]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["learning_rate"] for line in lines]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 3, 8])
def test_the_warmup_starts_above_zero_and_the_rest_is_unchanged(schedule: str, warmup: int) -> None:
    def taken(ours: bool) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        more = {"min_lr_rate": 0.1} if schedule == "cosine_with_min_lr" else {}
        scheduler = get_scheduler(
            schedule, optimizer, num_warmup_steps=warmup, num_training_steps=10, scheduler_specific_kwargs=more
        )
        if ours:
            start_above_zero(scheduler, warmup)
        found = []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    new, old = taken(True), taken(False)
    if schedule == "constant":  # it has no warmup
        warmup = 0
    assert new[warmup:] == old[warmup:]
    assert new[:warmup] == pytest.approx([0.5 * n / (warmup + 1) for n in range(1, warmup + 1)], rel=1e-12)


def test_a_run_of_one_step_trains(cli: Cli) -> None:
    result = cli("train", *QUICK, "--max-steps", "1", "--output", "out", "--json")
    report = result.report()
    assert rates("out") == [5e-4]
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"]
    assert "warning" not in result.stderr


@pytest.mark.parametrize("schedule", ["cosine", "linear", "cosine_with_min_lr"])
def test_an_extended_run_follows_the_longer_schedule(cli: Cli, schedule: str) -> None:
    options = ("train", *QUICK, "--set", f"train.schedule={schedule}")
    assert cli(*options, "--max-steps", "8", "--output", "whole").code == 0
    assert cli(*options, "--max-steps", "6", "--output", "part").code == 0
    before = rates("part")
    extended = cli("train", "--resume", "part", "--max-steps", "8")
    assert extended.code == 0, extended.stderr
    assert "the learning rate follows the schedule of 8 steps instead of 6" in extended.stderr
    assert rates("part") == [*before, *rates("whole")[6:]]
    assert rates("whole")[6] > 0


def test_a_resumed_run_of_the_same_length_says_nothing_and_keeps_its_rates(cli: Cli) -> None:
    assert cli("train", *QUICK, "--max-steps", "4", "--set", "train.save_every=2", "--output", "run").code == 0
    before = rates("run")
    for name in ("report.json", "trained.json"):
        Path("run", name).unlink()
    shutil.rmtree("run/checkpoints/checkpoint-4")
    resumed = cli("train", "--resume", "run")
    assert resumed.code == 0, resumed.stderr
    assert "schedule" not in resumed.stderr
    assert rates("run") == before


def test_a_schedule_that_is_not_a_function_of_the_step_is_left_alone() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    start_above_zero(scheduler, 3)
    assert not recompute(scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.5
