"""A run that trains an existing adapter further: its start is that adapter, not the base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import FILES, Run, assert_same_run

from smollm3_finetune import finetune

NAMES = tuple(file.name for file in FILES)
SETTINGS = {"batch_size": 2, "max_steps": 4, "sample_tokens": 1, "warmup": 0, "learning_rate": 0.01, "save_every": 2}


def further(output: str, reference: str = "start", **more: Any) -> dict[str, Any]:
    return finetune(
        start_from="sft", objective={"name": "toy-pairs", "reference": reference}, output=output, plugins=NAMES,
        device="cpu", quiet=True, seed=1, data={"path": "pairs.jsonl", "max_length": 64, "held_out": 0.25},
        train=SETTINGS, **more,
    )  # fmt: skip


@pytest.fixture
def sft(toy: ModuleType) -> Path:
    """A run that trained the adapter `scale` on the chosen answers."""
    finetune(
        "tiny", adapter="scale", objective="sft", device="cpu", quiet=True, output="sft", seed=1, plugins=NAMES,
        data={"path": "pairs.jsonl", "max_length": 64, "held_out": 0.25}, train={**SETTINGS, "max_steps": 3},
    )  # fmt: skip
    toy.seen.clear()
    return Path("sft")


def test_the_start_is_the_adapter_that_is_trained_further(sft: Path, run: Run, toy: ModuleType, cli: Any) -> None:
    report = further("whole")
    trained = [margin for training, margin, _ in toy.seen if training]
    assert float(trained[0].abs().max()) == 0.0 and float(trained[-1].abs().min()) > 1e-3
    assert report["before"]["held_out_loss"] == pytest.approx(math.log(2), abs=1e-7)
    (file,) = (sft / "adapter").glob("*.safetensors")
    saved, start = load_file(file), load_file("whole/start/trained.safetensors")
    assert len(saved) == len(start)
    assert all(any(torch.equal(a.flatten(), b.flatten()) for b in start.values()) for a in saved.values())

    toy.seen.clear()
    toy.stop_before[0] = 4
    with pytest.raises(Exception, match="killed"):
        further("killed")
    toy.stop_before[0] = None
    run("killed", resume=True)
    assert_same_run("whole", "killed")


@pytest.mark.long
def test_eval_measures_the_run_with_its_start(sft: Path, toy: ModuleType, cli: Any) -> None:
    report = further("run")
    found = cli("eval", "run", *(part for name in NAMES for part in ("-p", name)), "--json", "--device", "cpu",
                "--answers", "0")  # fmt: skip
    assert found.code == 0, found.stderr
    evaluated = json.loads(found.stdout)
    assert evaluated["after"]["held_out_loss"] == pytest.approx(report["after"]["held_out_loss"], rel=1e-4)
    assert evaluated["before"]["held_out_loss"] > math.log(2) + 1e-3, "the base is worse than the start"


@pytest.mark.long
@pytest.mark.plugins
def test_the_own_source_of_a_fresh_adapter_is_the_merged_model(run: Run, toy: ModuleType) -> None:
    data = {"path": "pairs.jsonl", "max_length": 64, "held_out": 0.25}
    about: Any = {"device": "cpu", "quiet": True, "seed": 1, "plugins": NAMES, "data": data, "train": SETTINGS}
    finetune("tiny", adapter="lora", objective="sft", output="sft", **about)
    toy.seen.clear()
    objective = {"name": "toy-pairs", "reference": "model"}
    finetune(start_from="sft", fresh_adapter=True, objective=objective, output="run", **about)
    margins = [margin for training, margin, _ in toy.seen if training]
    assert float(margins[0].abs().max()) < 1e-3, "the reference is the merged model, not the model before it"
