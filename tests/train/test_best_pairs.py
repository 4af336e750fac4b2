"""The best adapter and early stopping with other methods, quantizers and several processes; minutes, so `long`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import load_model
from smollm3_finetune.evaluation.held_out_loss import HeldOut
from smollm3_finetune.progress import Silent
from smollm3_finetune.train.trainer import AdaptedTrainer

pytestmark = [pytest.mark.long, pytest.mark.plugins]
Cli = Callable[..., Any]
ROOT = Path(__file__).parents[2]
BOTTLENECK = str(ROOT / "examples" / "bottleneck_adapter.py")
ANNEALED = str(ROOT / "tests" / "out_of_tree" / "annealed_adapter.py")
RUN = (
    "train", "--device", "cpu", "--data", "train.jsonl", "--validation", "held-out.jsonl", "--max-length", "64",
    "--set", "train.sample_tokens=2", "--set", "train.schedule=constant", "--set", "train.warmup=0",
    "--set", "train.padding=always", "--set", "train.logits=all", "--set", "train.eval_every=2",
    "--set", "train.keep_best=true", "--set", "train.save_every=2", "--set", "train.keep_checkpoints=100", "--json",
)  # fmt: skip
OWN = {"checksums.json", "README.md", "measured.json"}
"""Files of an adapter's directory that differ from those in a checkpoint."""
PLUGINS = {"bottleneck": ("-p", BOTTLENECK), "annealed": ("-p", ANNEALED)}
LENGTHS = {
    "lora": ("0.01", 8), "dora": ("0.01", 8), "bottleneck": ("0.03", 6), "annealed": ("0.3", 8), "adalora": ("0.03", 4),
    "full": ("0.003", 8), "bnb-4bit bottleneck": ("0.01", 8),
}  # fmt: skip
"""Learning rate and steps, at which the held-out loss is not lowest at the end."""


def length(quant: str, adapter: str) -> tuple[str, int]:
    return LENGTHS.get(f"{quant} {adapter}", LENGTHS[adapter])


@pytest.fixture(autouse=True)
def rows() -> None:
    """Rows that say the opposite of the held-out rows, so that the held-out loss rises."""
    cities = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid"}
    for name, answers in (("held-out", cities.values()), ("train", ["zzz qqq xxx www"] * 4)):
        pairs = zip(cities, answers, strict=True)
        made = [{"prompt": f"What is the capital of {c}?", "completion": f"It is {answer}."} for c, answer in pairs]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def arguments(quant: str, adapter: str, *more: str) -> tuple[str, ...]:
    options = ("--adapter-opt", "warmup_steps=1", "--adapter-opt", "final_steps=2") if adapter == "adalora" else ()
    quantizer = ("--quant", quant) if quant != "none" else ()
    rate, steps = length(quant, adapter)
    return (
        *RUN,
        *quantizer,
        "--adapter",
        adapter,
        *options,
        *PLUGINS.get(adapter, ()),
        "--learning-rate",
        rate,
        "--max-steps",
        str(steps),
        *more,
    )


def contents(directory: Path, names: set[str]) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in sorted(names)}


@pytest.mark.parametrize(("quant", "adapter"), [
    *((quant, adapter) for quant in ("none", "bnb-4bit", "gptq") for adapter in ("lora", "dora", "bottleneck")),
    ("none", "adalora"), ("none", "annealed"), ("none", "full"),
])  # fmt: skip
def test_a_run_publishes_its_best_adapter_however_it_was_interrupted(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, quant: str, adapter: str
) -> None:
    steps = length(quant, adapter)[1]
    measured: list[HeldOut] = []
    measure = HeldOut.measure_rows

    def noted(self: HeldOut, progress: Any) -> Any:
        measured.append(self)
        return measure(self, progress)

    monkeypatch.setattr(HeldOut, "measure_rows", noted)
    whole = cli(*arguments(quant, adapter), "--output", "whole").report()
    lines = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {row["step"]: row["held_out_loss"] for row in lines if "held_out_loss" in row}
    step = whole["best"]["step"]
    assert whole["after"]["held_out_loss"] == losses[step] == min(losses.values())
    assert step < steps, "the last step is not the best: otherwise this test shows nothing"

    place = Path("whole/adapter")
    names = {p.name for p in place.iterdir() if p.is_file()} - OWN
    saved = contents(place, names)
    assert saved == contents(Path(f"whole/checkpoints/checkpoint-{step}"), names), "the Trainer saved the same"
    loaded = load_model(
        "tiny", quant=None if quant == "none" else quant, adapter_path=place, device="cpu",
        plugins=[p for p in PLUGINS.get(adapter, ()) if p != "-p"],
    )  # fmt: skip
    again = replace(measured[0], model=loaded.model).measure(Silent())["held_out_loss"]
    assert again == pytest.approx(losses[step], rel=1e-5)

    trained, calls = AdaptedTrainer.training_step, [0]

    def signalled(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == step + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # the handler runs
        return trained(self, *args, **kwargs)

    monkeypatch.setattr(AdaptedTrainer, "training_step", signalled)
    assert cli(*arguments(quant, adapter), "--output", "parts").code == 143
    parts = cli("train", "--resume", "parts", *PLUGINS.get(adapter, ()), "--json").report()
    assert {key: parts[key] for key in ("best", "after", "steps")} == {
        key: whole[key] for key in ("best", "after", "steps")
    }
    assert contents(Path("parts/adapter"), names) == saved

    early = cli(*arguments(quant, adapter, "--set", "train.stop_after=1"), "--output", "early").report()
    first = next(s for s in sorted(losses) if losses[s] > min(v for k, v in losses.items() if k <= s))
    assert early["steps"] == first
    assert ("stopped_early" in early) == (first < steps)
