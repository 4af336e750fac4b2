"""Whole runs: measures in the metrics, the report, the card, the page and `eval`; two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.testing.commands import smollm3
from smollm3_finetune.testing.small import small_model_directory

MEASURES = {"chosen_reward", "rejected_reward", "margin", "accuracy", "kl"}
ROUNDING = 2e-4
"""Relative, of sums of float32 in another order."""


pytestmark = pytest.mark.plugins


@pytest.fixture(autouse=True)
def files(isolated: Path) -> None:
    pairs = [
        {"prompt": f"What is {n} + {n}?", "chosen": f"It is {2 * n}.", "rejected": f"I do not know, ask {n} times."}
        for n in range(60)
    ]
    labeled = [
        {"prompt": p["prompt"], "completion": p["chosen" if n % 2 else "rejected"], "label": bool(n % 2)}
        for n, p in enumerate(pairs)
    ]
    for name, rows in (("pairs", pairs), ("labeled", labeled)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def arguments(*more: str, model: str | None = None, data: str = "pairs.jsonl", steps: int = 3) -> list[str]:
    return [
        "train", "--model", model or str(small_model_directory(biases=False)), "--data", data, "--device", "cpu",
        "--max-steps", str(steps), "--max-length", "128", "--set", "data.held_out=0.5", "--set",
        "train.sample_tokens=2", "--set", "train.learning_rate=1e-2", "--json", *more,
    ]  # fmt: skip


def train(*more: str, **about: Any) -> Mapping[str, Any]:
    result = smollm3(*arguments(*more, **about))
    assert result.code == 0, result.stderr
    found: Mapping[str, Any] = json.loads(result.stdout)
    return found


def steps_of(run: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_shows_measures_with_intervals_everywhere() -> None:
    report = train("--objective", "dpo", "--adapter", "full", "--output", "run")
    measures = report["measures"]
    assert set(measures) == MEASURES
    accuracy = measures["accuracy"]
    assert accuracy["before"]["mean"] == 0.5 and accuracy["after"]["mean"] > 0.9 and accuracy["rows"] >= 25
    margin = measures["margin"]
    assert margin["before"]["mean"] == 0 and 0 < margin["difference"]["low"] < margin["difference"]["mean"]
    assert report["after"]["measures"]["margin"] == pytest.approx(margin["after"]["mean"])
    assert report["after"]["perplexity"] is None and report["comparison"]["per_token"] is False
    steps = steps_of("run")
    assert all(set(row) >= MEASURES for row in steps)
    assert steps[0]["margin"] == 0 and steps[0]["accuracy"] == 0.5 and steps[-1]["margin"] > 0
    assert steps[0]["loss"] == pytest.approx(0.6931472)
    card = Path("run/adapter/README.md").read_text()
    assert "held-out accuracy before → after training" in card and "perplexity" not in card
    page = Path("run/report.html").read_text()
    assert "chosen reward" in page and "95 % interval of the difference row by row" in page
    evaluated = smollm3("eval", "run", "--answers", "0", "--no-null-adapter", "--device", "cpu")
    assert evaluated.code == 0, evaluated.stderr
    assert "accuracy 0.500 → " in evaluated.stdout and "perplexity" not in evaluated.stdout


def test_label_smoothing_without_effect_is_refused_before_rows_are_read() -> None:
    asked = ("--objective", "dpo", "--objective-opt", "loss_type=hinge", "--objective-opt", "label_smoothing=0.1")
    result = smollm3(*arguments(*asked, "--adapter", "full"))
    assert result.code == 2 and "label_smoothing=0.1 has no effect with loss_type=hinge" in result.stderr
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--batch-size", "1"), "train.batch_size=1 does not work with"),
        (("--set", "train.reference=once"), "train.reference=once does not work with"),
    ],
)
def test_kto_says_what_its_kl_term_needs(more: tuple[str, ...], message: str) -> None:
    asked = arguments("--objective", "kto", "--adapter", "full", *more, "--dry-run", data="labeled.jsonl")
    result = smollm3(*asked)
    assert result.code == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_kto_takes_batches_of_one_packed_sequence() -> None:
    one = ("--batch-size", "1", "--set", "train.packing=true", "--dry-run")
    result = smollm3(*arguments("--objective", "kto", "--adapter", "full", *one, data="labeled.jsonl"))
    assert result.code == 0, result.stderr


def test_kto_learns_from_labels() -> None:
    report = train("--objective", "kto", "--adapter", "full", data="labeled.jsonl")
    assert report["measures"]["accuracy"]["after"]["mean"] > 0.8
    good, bad = report["measures"]["chosen_reward"], report["measures"]["rejected_reward"]
    assert good["after"]["mean"] > bad["after"]["mean"] and good["rows"] + bad["rows"] == report["comparison"]["rows"]
    last = steps_of(report["run"])[-1]
    assert set(last) >= MEASURES and last["kl"] >= 0


@pytest.mark.long
@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("objective", ["dpo", "apo-zero", "apo-down", "orpo", "simpo", "cpo"])
def test_every_objective_lowers_its_held_out_loss(objective: str, adapter: str) -> None:
    report = train("--objective", objective, "--adapter", adapter, steps=4)
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"]
    if objective != "apo-down":
        assert report["measures"]["margin"]["difference"]["low"] > 0
    if objective in ("dpo", "apo-zero", "apo-down"):
        assert report["measures"]["margin"]["before"]["mean"] == pytest.approx(0, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_two_processes_train_and_measure_like_one(objective: str) -> None:
    common = ("--objective", objective, "--adapter", "full", "--set", "train.gradient_accumulation=2")
    alone = train(*common, "--batch-size", "4", "--output", "alone")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = subprocess.run(
        [*launcher, "-m", "smollm3_finetune.main", *arguments(*common, "--batch-size", "2", "--output", "both")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    together = json.loads(both.stdout)
    for ours, theirs in zip(steps_of("both"), steps_of("alone"), strict=True):
        for name in {"loss", "grad_norm", *MEASURES} & set(theirs):
            assert ours[name] == pytest.approx(theirs[name], rel=ROUNDING, abs=1e-6), name
    for name, measure in alone["measures"].items():
        assert together["measures"][name]["after"]["mean"] == pytest.approx(measure["after"]["mean"], rel=ROUNDING)
