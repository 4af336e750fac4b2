"""Numbers gone bad: a named error or a warning, early, with a checkpoint of before."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.train.health import Health, compare_held_out, exploded

Cli = Callable[..., Any]
PLUGINS = [
    argument
    for name in ("scale_adapter", "failing_adapter")
    for argument in ("-p", str(Path(__file__).parents[1] / "out_of_tree" / f"{name}.py"))
]
QUICK = ("train", *PLUGINS, "--adapter", "failing", "--set", "data.limit=20", "--set", "train.sample_tokens=2",
         "--learning-rate", "0.001", "--output", "out")  # fmt: skip

ON_LOGITS = ("--adapter-opt", "layers=lm_head")


def how(word: str, at: int = 3) -> tuple[str, ...]:
    return ("--adapter-opt", f"how={word}", "--adapter-opt", f"at={at}")


def test_gradients_that_are_not_finite_leave_a_checkpoint_of_the_step_before(cli: Cli) -> None:
    result = cli(*QUICK, *how("gradients"), "--max-steps", "6")
    assert result.code == 1
    assert "error: the gradient norm became" in result.stderr
    assert "in step 3; the checkpoint out/checkpoints/checkpoint-2 has the weights of step 2" in result.stderr
    assert "--learning-rate" in result.stderr
    saved = load_file("out/checkpoints/checkpoint-2/adapter.safetensors")
    assert all(bool(t.isfinite().all()) for t in saved.values())
    assert any(bool((t != 1).any()) for t in saved.values()), "two steps were taken"
    assert [json.loads(line)["step"] for line in Path("out/metrics.jsonl").read_text().splitlines()] == [1, 2]
    used = cli("generate", "tiny", *PLUGINS, "--adapter-path", "out/checkpoints/checkpoint-2", "--prompt", "Hello!")
    assert used.code == 0, used.stderr
    (run,) = cli("runs", "list", "--runs", "out", "--json").report()["runs"]
    assert (run["state"], run["steps"], run["planned_steps"]) == ("failed", 2, 6)
    assert f"error: {run['error']['message']}\n  hint: {run['error']['hint']}" in result.stderr


def test_gradients_that_are_not_finite_in_the_first_step_leave_nothing(cli: Cli) -> None:
    result = cli(*QUICK, *how("gradients", 1), "--max-steps", "6")
    assert result.code == 1
    assert "in step 1; nothing was trained" in result.stderr
    assert not Path("out").exists()


def test_weights_that_are_not_finite_are_never_saved(cli: Cli) -> None:
    """After the last step: no later gradient shows it, and there are no held-out rows."""
    blind = ("--set", "data.held_out=0", "--set", "train.log_every=50", "--set", "train.save_every=2")
    result = cli(*QUICK, *how("weights", 4), "--max-steps", "4", *blind)
    assert result.code == 1
    assert "the trained weights became infinite or nan by step 4" in result.stderr
    assert not Path("out/adapter").exists()
    assert sorted(p.name for p in Path("out/checkpoints").iterdir()) == ["checkpoint-2"]


def test_weights_that_are_not_finite_end_the_run_at_the_next_step(cli: Cli) -> None:
    result = cli(*QUICK, *how("weights", 2), "--max-steps", "50")
    assert result.code == 1
    assert "infinite or nan by step 2" in result.stderr
    assert not Path("out/adapter").exists()


def test_a_ruined_model_ends_the_run_early_and_keeps_the_checkpoint_of_before(cli: Cli) -> None:
    result = cli(*QUICK, *how("ruin", 4), *ON_LOGITS, "--max-steps", "60", "--set", "train.save_every=3")
    assert result.code == 1, result.stderr
    assert "error: the loss exploded from" in result.stderr
    assert not Path("out/adapter").exists()
    steps = [json.loads(line)["step"] for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert max(steps) < 12
    assert Path("out/checkpoints/checkpoint-3").is_dir()


def test_a_ruined_adapter_of_a_short_run_is_an_error_and_keeps_its_report(cli: Cli) -> None:
    result = cli(*QUICK, *how("ruin", 1), *ON_LOGITS, "--max-steps", "2", "--json")
    assert (result.code, result.stdout) == (1, "")
    assert "error: the held-out loss rose from" in result.stderr
    assert "the adapter in out/adapter is not usable" in result.stderr
    report = json.loads(Path("out/report.json").read_text())
    assert report["after"]["held_out_loss"] > 2 * report["before"]["held_out_loss"]


def test_a_run_that_changed_no_weight_says_so(cli: Cli) -> None:
    result = cli(*QUICK, *how("frozen"), "--max-steps", "2")
    assert result.code == 0, result.stderr
    assert "warning: no trained weight has changed in 2 steps" in result.stderr
    usual = cli(*QUICK[:-1], "usual", *how("weights", 99), "--max-steps", "1")
    assert usual.code == 0, usual.stderr
    assert "warning" not in usual.stderr


@pytest.mark.parametrize("rate", ["1e6", "1e38", "inf", "0"])
def test_a_learning_rate_out_of_range_is_refused(cli: Cli, rate: str) -> None:
    result = cli(*QUICK, "--learning-rate", rate)
    assert result.code == 2
    assert "--learning-rate" in result.stderr


def rows(losses: list[float], norm: float | None = 1.0) -> list[dict[str, Any]]:
    return [{"step": n, "loss": loss, "grad_norm": norm} for n, loss in enumerate(losses, 1)]


def test_one_hard_batch_does_not_end_a_run() -> None:
    health = Health(warn=pytest.fail)
    assert all(health.logged(row) for row in rows([2.0, 30.0, 30.0, 1.9, 30.0, 30.0, 30.0, 30.0, 1.8]))
    health.check_end("nothing")
    assert not health.logged({"step": 10, "loss": math.nan, "grad_norm": None})
    with pytest.raises(SmolLM3Error, match="the loss became nan by step 10; nothing"):
        health.check_end("nothing")


def test_warnings_come_once() -> None:
    said: list[str] = []
    health = Health(warn=said.append)
    for row in (*rows([1.5] * 30), *rows([1.2] * 3, norm=5000.0)):
        assert health.logged(row)
    assert len(said) == 2
    assert "the loss has been 1.5 for 10 logged steps" in said[0]
    assert "5,000 times the median" in said[1]


def test_a_usual_run_has_no_warning() -> None:
    health = Health(warn=pytest.fail)
    for step in range(1, 200):
        assert health.logged({"step": step, "loss": 4 / step + 0.5, "grad_norm": 1 + 20 * math.sin(step) ** 2})


def test_the_held_out_losses_are_compared() -> None:
    said: list[str] = []
    compare_held_out(2.0, 1.0, "a", said.append)
    compare_held_out(None, None, "a", said.append)
    assert said == []
    compare_held_out(2.0, 2.5, "a", said.append)
    assert said == ["warning: the held-out loss rose from 2.0000 to 2.5000: on held-out rows, the adapter is worse "
                    "than the base model"]  # fmt: skip
    with pytest.raises(SmolLM3Error, match="the adapter in a is not usable"):
        compare_held_out(2.0, 10.0, "a", said.append)


def test_a_start_from_a_high_loss_may_rise_by_more() -> None:
    assert not exploded(11.0, 20.0)
    assert exploded(1.0, 6.5)
    assert exploded(1.0, math.inf)
