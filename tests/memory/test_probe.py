"""A few measured steps of a planned run, and the memory in the report of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.load import assignment
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.memory.probe import Probe, Step, check_probe, probe, relative_margin
from smollm3_finetune.progress import Silent
from smollm3_finetune.train.distributed.layout import Layout
from smollm3_finetune.train.start import PlannedRun, plan_training

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is measured on Linux")


def planned(**settings: Any) -> PlannedRun:
    about = {"adapter.name": "full", "data.limit": 30, "device": "cpu", "train.batch_size": 2, **settings}
    return plan_training(
        [assignment(f"{key}={value}", "the test") for key, value in about.items()],
        find_plugins=lambda names: discover(PluginSelection.of(tuple(names), no_plugins=True)),
        progress=Silent(),
        warn=print,
    )


@LINUX
def test_takes_steps_and_keeps_nothing(tmp_path: Path) -> None:
    run = planned(output=str(tmp_path / "run"), **{"data.max_length": 64, "train.max_steps": "null"})
    found = probe(run.plan, run.registry, 2, lambda text: None)
    assert not (tmp_path / "run").exists()
    assert len(found.steps) == 2
    assert all(s.seconds > 0 and 0 < s.tokens <= 128 for s in found.steps)
    assert found.total_steps == 14  # 27 training rows in batches of 2
    assert found.memory["device"] == "cpu"
    assert found.memory["peak"] >= 0  # the tests before it leave free memory, which the steps use
    assert 0 < found.memory["batch_tokens"] <= 128
    middle, low, high = found.duration
    assert 0 < low < middle < high
    assert json.loads(json.dumps(found.as_json()))["total_steps"] == 14


def test_the_duration_follows_the_tokens() -> None:
    steps = (Step(seconds=2.0, tokens=200), Step(seconds=4.1, tokens=400), Step(seconds=2.9, tokens=300))
    found = Probe(steps=steps, loading=1.0, first=9.0, total_steps=100, tokens_per_step=600.0, memory={})
    middle, low, high = found.duration
    assert middle == pytest.approx(600.0)  # 100 steps of 600 tokens, at 100 tokens a second
    assert low < 600 < high < 700


def test_without_counted_tokens_the_duration_follows_the_steps() -> None:
    steps = (Step(seconds=2.0, tokens=0), Step(seconds=4.0, tokens=0), Step(seconds=3.0, tokens=0))
    found = Probe(steps=steps, loading=1.0, first=9.0, total_steps=100, tokens_per_step=600.0, memory={})
    middle, low, high = found.duration
    assert middle == pytest.approx(300.0)
    assert low < 300 < high


def test_the_margin_is_zero_without_variation_and_grows_with_it() -> None:
    assert relative_margin([1.0, 2.0, 3.0], [10, 20, 30]) == pytest.approx(0)
    small, large = relative_margin([1.0, 1.1, 0.9], [10] * 3), relative_margin([1.0, 1.4, 0.6], [10] * 3)
    assert 0 < small < large
    assert relative_margin([1.0, 1.1], [10, 10]) > relative_margin([1.0, 1.1] * 4, [10] * 8)


def test_refusals() -> None:
    run = planned()
    with pytest.raises(ConfigError, match="from 2 to 1000"):
        check_probe(run.plan, 1)
    check_probe(run.plan, 2)


def test_several_processes_are_refused() -> None:
    plan = replace(planned().plan, layout=Layout(processes=2))
    with pytest.raises(ConfigError, match="one process"):
        check_probe(plan, 3)


@LINUX
def test_a_run_reports_its_memory(cli: Callable[..., Any]) -> None:
    quick = ("--max-steps", "2", "--set", "data.limit=20", "--set", "train.sample_tokens=1")
    report = cli("train", "--adapter", "full", *quick, "--json").report()
    memory = report["memory"]
    assert set(memory) == {"device", "peak", "floor", "batch_tokens"}
    assert memory["device"] == "cpu"
    assert memory["peak"] > 8e6
    assert memory["batch_tokens"] * 2 >= report["tokens"], "the largest of two batches"
