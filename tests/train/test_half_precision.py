"""Runs in half precision: trained weights stay in float32, and losses are measured as in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from smollm3_finetune import load_model

SCALE = str(Path(__file__).parents[1] / "out_of_tree" / "scale_adapter.py")
QUICK = ("--max-steps", "4", "--set", "data.limit=40", "--set", "train.sample_tokens=2", "--dtype", "bfloat16")
LITTLE = ("--learning-rate", "1e-6", "--set", "train.warmup=0", "--set", "train.schedule=constant")

Cli = Callable[..., Any]


def saved(path: str) -> dict[str, torch.Tensor]:
    (file,) = Path(path).glob("*.safetensors")
    with safe_open(str(file), "pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping


@pytest.mark.parametrize(
    ("purpose", "options", "dtype"),
    [
        ("train", {}, torch.float32),
        ("train", {"master_weights": False}, torch.bfloat16),
        ("infer", {}, torch.bfloat16),
    ],
)
def test_full_keeps_weights_in_float32_while_they_are_trained(
    purpose: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    loaded = load_model("tiny", adapter="full", adapter_options=options, purpose=purpose, dtype="bfloat16")
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}


def test_small_steps_change_the_weights(cli: Cli) -> None:
    """Four steps of 1e-6 are far less than 1/256 of nearly every weight: in bfloat16 they have no effect."""
    before = {n: p.detach() for n, p in load_model("tiny", dtype="bfloat16").model.named_parameters()}
    moved = {}
    for master in ("true", "false"):
        report = cli(
            *("train", "--adapter", "full", "--adapter-opt", f"master_weights={master}", *QUICK, *LITTLE),
            *("--output", master, "--json"),
        ).report()
        tensors = saved(report["adapter"])
        changed = sum(int((tensors[n].float() != before[n].float()).sum()) for n in tensors)
        moved[master] = changed / sum(t.numel() for t in tensors.values())
    assert moved["true"] > 0.5  # the rest are embedding rows of tokens that did not occur
    assert moved["false"] < 0.01


def test_training_weights_in_bfloat16_is_reported(cli: Cli) -> None:
    told = "weights are trained in bfloat16"
    options = ("--adapter-opt", "master_weights=false")
    assert told in cli("train", "--adapter", "full", *options, *QUICK, "--output", "one").stderr
    assert told not in cli("train", "--adapter", "full", *QUICK, "--output", "two").stderr


def test_a_step_computes_in_bfloat16(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    linear = torch.nn.Linear.forward

    def watched(self: Any, x: torch.Tensor) -> torch.Tensor:
        out = linear(self, x)
        seen[torch.is_grad_enabled()].add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    report = cli("train", "--adapter", "full", *QUICK, "--output", "out", "--json").report()
    assert seen == {True: {torch.bfloat16}, False: {torch.bfloat16}}, "in training, and where the run measures"
    assert report["batches"] == {"padded": False, "logits": "supervised"}


@pytest.mark.parametrize("adapter", ["full", "scale"])
def test_before_and_after_are_measured_alike(cli: Cli, adapter: str) -> None:
    """With a learning rate so small that nothing changes, both losses are equal."""
    nothing = ("--learning-rate", "1e-30", "--set", "train.weight_decay=0")
    report = cli("train", "-p", SCALE, "--adapter", adapter, *QUICK, *nothing, "--output", "out", "--json").report()
    assert report["after"]["held_out_loss"] == report["before"]["held_out_loss"]
    assert report["batches"]["padded"] is False


@pytest.mark.parametrize("adapter", ["full", "scale"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(cli: Cli, adapter: str) -> None:
    common = ("train", "-p", SCALE, "--adapter", adapter, *QUICK, "--set", "train.schedule=constant", "--json")
    whole = cli(*common, "--output", "whole").report()
    cli(*common, "--output", "part", "--max-steps", "2", "--set", "train.save_every=2").report()
    resumed = cli("train", "--resume", "part", "--max-steps", "4", "-p", SCALE, "--json").report()
    assert resumed["after"] == whole["after"], "bit for bit"
    gathered_weights, weights = saved(whole["adapter"]), saved(resumed["adapter"])
    assert all(torch.equal(weights[n], t) for n, t in gathered_weights.items())
    assert {t.dtype for t in weights.values()} == {torch.float32}


def test_the_loss_falls_and_the_model_answers(cli: Cli) -> None:
    report = cli("train", "--adapter", "full", *QUICK, "--learning-rate", "1e-3", "--output", "o", "--json").report()
    assert report["after"]["held_out_loss"] < 0.95 * report["before"]["held_out_loss"]
    answered = cli("generate", "o", "--prompt", "What is 2 + 2?", "--max-new-tokens", "3", "--dtype", "bfloat16")
    assert answered.code == 0, answered.stderr
    assert answered.stdout.strip()


HALF_SCALE = Path(SCALE).read_text().replace("ctx.trained_dtype", "torch.float16").replace('"scale"', '"half"')


def test_weights_in_float16_are_refused_if_gradients_would_be_scaled(cli: Cli, tmp_path: Path) -> None:
    from smollm3_finetune.errors import PluginError
    from smollm3_finetune.train.trainer import _check_trained

    (tmp_path / "half_adapter.py").write_text(HALF_SCALE.replace("scale_adapter:", "half_adapter:"))
    files = (str(tmp_path / "half_adapter.py"),)
    loaded = load_model("tiny", adapter="half", purpose="train", dtype="float16", plugins=files)

    class OnGPU:
        fp16 = True

    arguments: Any = OnGPU()
    with pytest.raises(
        PluginError, match="trained weights in float16, but the gradient scaler does not support float16 gradients"
    ):
        _check_trained(loaded, arguments)
    arguments.fp16 = False
    _check_trained(loaded, arguments)
