"""Runs of smollm3-distill: the teacher is evaluated once, its values are found again, and processes train like one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import finetune
from smollm3_finetune.testing.small import write_small_model
from smollm3_finetune.train import reference

pytestmark = pytest.mark.plugins
RUN = (
    *("train", "--json", "--device", "cpu", "--quant", "bnb-4bit", "--objective", "distill", "--max-length", "64"),
    *("--max-steps", "3", "--set", "data.limit=30", "--set", "train.sample_tokens=1"),
)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The teachers that are loaded."""
    found: list[str] = []
    load = reference.loaded_model

    def noted(plan: Any, *args: Any) -> Any:
        found.append(plan.ref)
        return load(plan, *args)

    monkeypatch.setattr(reference, "loaded_model", noted)
    return found


def run(output: str, **objective: Any) -> dict[str, Any]:
    settings = {"max_steps": 2, "batch_size": 2, "sample_tokens": 1, "warmup": 0, "learning_rate": 1e-3}
    more = {key: objective.pop(key) for key in ("model", "quant") if key in objective}
    return finetune(
        more.get("model", "tiny"), quant=more.get("quant", "bnb-4bit"), adapter="lora", device="cpu", quiet=True,
        objective={"name": "distill", **objective}, output=output, seed=1,
        data={"limit": 12, "max_length": 48, "held_out": 0.25}, train=settings,
    )  # fmt: skip


def weights(output: str) -> bytes:
    return Path(output, "adapter", "adapter_model.safetensors").read_bytes()


def losses(output: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(output, "metrics.jsonl").read_text().splitlines()]


def test_the_second_run_reads_the_values_of_the_teacher(isolated: Path, loads: list[str]) -> None:
    first = run("first")
    assert loads == ["tiny"]
    second = run("second")
    assert loads == ["tiny"], "the teacher is not loaded again"
    assert weights("second") == weights("first")
    assert second["before"] == first["before"] and first["before"]["held_out_loss"] > 0
    run("jsd", divergence="jsd", loss_weight=0.5)
    assert loads == ["tiny"], "nor for another function of the same values"
    assert losses("jsd") != losses("first")
    run("fewer", top_k=4)
    assert loads == ["tiny"] * 2


def test_the_dense_model_has_nothing_to_learn_from_itself(isolated: Path) -> None:
    report = run("dense", quant="none")
    assert report["before"]["held_out_loss"] < 1e-6
    assert losses("dense")[0] < 1e-6


def test_another_model_teaches(isolated: Path, loads: list[str]) -> None:
    write_small_model(isolated / "large", seed=1, biases=False)
    write_small_model(isolated / "small", seed=2, biases=False)
    run("run", model="small", quant="none", teacher="large")
    assert loads == ["large"]
    assert losses("run")[0] > 0.01


def test_a_teacher_with_other_tokens_is_refused_before_rows_are_read(cli: Callable[..., Any]) -> None:
    folder = write_small_model(Path("large"))
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = found["model"]["vocab"]
    a, b = (token for token, number in vocabulary.items() if number in (700, 701))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(found), encoding="utf-8")
    Path("rows.jsonl").write_text("not json\n")
    refused = cli("train", "--objective", "distill", "--objective-opt", "teacher=large", "--device", "cpu",
                  "--data", "rows.jsonl", "--dry-run")  # fmt: skip
    assert refused.code == 3, refused.stderr
    assert "the reference model 'large' has another vocabulary than 'tiny': 4 entries differ" in refused.stderr
    assert "--objective-opt teacher=MODEL, a model with the tokenizer of 'tiny'" in refused.stderr


def test_a_dry_run_names_the_teacher(cli: Callable[..., Any]) -> None:
    shown = cli("train", "--objective", "distill", "--quant", "bnb-4bit", "--device", "cpu", "--dry-run")
    assert (
        "# the loss compares the model with its own source 'tiny'; computed once, before the first step\n"
        in shown.stdout
    )


@pytest.mark.long
@pytest.mark.parametrize("settings", [(), ("--set", "train.padding=always")], ids=["flat", "padded"])
def test_two_processes_and_accumulation_train_like_one(cli: Callable[..., Any], settings: tuple[str, ...]) -> None:
    alone = cli(*RUN, *settings, "--batch-size", "8", "--output", "alone")
    assert alone.code == 0, alone.stderr
    shares = ("--batch-size", "2", "--set", "train.gradient_accumulation=2")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = subprocess.run(
        [*launcher, "-m", "smollm3_finetune.main", *RUN, *settings, *shares, "--output", "both"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    # the terms are those of one process, summed in another order in float32
    assert losses("both") == pytest.approx(losses("alone"), rel=1e-4)
    one, two = json.loads(alone.stdout), json.loads(both.stdout)
    assert two["tokens"] == one["tokens"]
    assert two["after"]["held_out_loss"] == pytest.approx(one["after"]["held_out_loss"], rel=1e-4)
