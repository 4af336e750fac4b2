"""Measurements during a run: held-out loss every few steps, trackers; also runs on raw text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from smollm3_finetune import load_model
from smollm3_finetune.model.device import repeatable

QUICK = ("--max-steps", "4", "--set", "data.limit=40", "--set", "train.sample_tokens=4", "--adapter", "full")

Cli = Callable[..., Any]


def metrics(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_an_intermediate_held_out_loss_equals_that_of_a_run_that_ends_there(cli: Cli) -> None:
    """Measuring does not change the training."""
    constant = ("--set", "train.schedule=constant", "--set", "train.warmup=0")
    plain = cli("train", *QUICK, *constant, "--output", "plain", "--json").report()
    told = cli("train", *QUICK, *constant, "--set", "train.eval_every=2", "--output", "measured", "--json")
    report = told.report()
    assert report["after"] == plain["after"]
    rows = metrics("measured")
    between, last = [r for r in rows if "held_out_loss" in r]
    assert [(r["step"], "loss" in r) for r in rows] == [
        (1, True), (2, False), (2, True), (3, True), (4, True), (4, False),
    ]  # fmt: skip
    assert last == {"step": 4, **{k: report["after"][k] for k in ("held_out_loss", "perplexity")}}
    assert [r["loss"] for r in rows if "loss" in r] == [r["loss"] for r in metrics("plain")]
    shorter = cli("train", *QUICK, *constant, "--max-steps", "2", "--output", "shorter", "--json").report()
    assert between == {"step": 2, **{k: shorter["after"][k] for k in ("held_out_loss", "perplexity")}}
    assert f"held-out loss after 2 steps: {between['held_out_loss']:.4f}" in told.stderr


def test_a_resumed_run_keeps_the_measurements_before_its_checkpoint(cli: Cli) -> None:
    every = ("--set", "train.eval_every=1", "--set", "train.save_every=2")
    cli("train", *QUICK, *every, "--max-steps", "3", "--output", "run", "--json").report()
    assert [r["step"] for r in metrics("run") if "held_out_loss" in r] == [1, 2, 3]
    cli("train", "--resume", "run", "--max-steps", "5", "--json").report()
    assert [r["step"] for r in metrics("run") if "held_out_loss" in r] == [1, 2, 3, 4, 5]


def test_without_held_out_rows_there_is_nothing_to_measure(cli: Cli) -> None:
    none = ("--set", "train.eval_every=1", "--set", "data.held_out=0")
    cli("train", *QUICK, *none, "--output", "run", "--json").report()
    assert [r["step"] for r in metrics("run")] == [1, 2, 3, 4]


class Recorder(TrainerCallback):  # type: ignore[misc]
    """A tracker that records its calls."""

    got: list[dict[str, Any]]
    fails_at = ""

    def event(self, name: str) -> None:
        if self.fails_at == name:
            raise ValueError("no API key\nand more")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.event("begin")
        type(self).got = [{"run_name": args.run_name}]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.event("log")
        self.got.append({**logs, "step": state.global_step})


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "recorder", Recorder)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["recorder"])
    monkeypatch.setattr(Recorder, "fails_at", "")
    return Recorder


def test_a_tracker_gets_the_entries_of_metrics_jsonl(cli: Cli, recorder: type[Recorder]) -> None:
    to = ("--set", "train.report_to=recorder", "--set", "train.eval_every=2")
    cli("train", *QUICK, *to, "--output", "runs/one", "--json").report()
    name, *logs = recorder.got
    assert name == {"run_name": "one"}
    mine = metrics("runs/one")
    for theirs, ours, count in (("loss", "loss", 4), ("eval_loss", "held_out_loss", 2)):
        expected = [(r["step"], r[ours]) for r in mine if ours in r]
        assert [(r["step"], r[theirs]) for r in logs if theirs in r] == expected
        assert len(expected) == count


def test_a_tracker_that_cannot_start_is_one_sentence(cli: Cli, recorder: type[Recorder]) -> None:
    recorder.fails_at = "begin"
    result = cli("train", *QUICK, "--set", "train.report_to=[recorder]", "--output", "run")
    assert result.code == 1
    assert "train.report_to=recorder cannot start: ValueError: no API key" in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("run").exists(), "nothing was trained, and the same command can be given again"


def test_a_tracker_that_fails_later_does_not_stop_the_training(cli: Cli, recorder: type[Recorder]) -> None:
    recorder.fails_at = "log"
    result = cli("train", *QUICK, "--set", "train.report_to=recorder", "--output", "run")
    assert result.code == 0, result.stderr
    assert result.stderr.count("recorder is disabled for the rest of this run: ValueError: no API key") == 1
    assert len(metrics("run")) == 4


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("wandbb", 2, "train.report_to: transformers' Trainer has no tracker 'wandbb'\n  hint: did you mean 'wandb'?"),
        ("wandb", 4, "train.report_to=wandb needs a package that is not installed\n  hint: pip install wandb"),
    ],
)
def test_a_missing_tracker_is_reported_before_weights_are_read(
    cli: Cli, recorder: type[Recorder], name: str, code: int, message: str
) -> None:
    result = cli("train", *QUICK, "--set", f"train.report_to={name}", "--dry-run")
    assert result.code == code
    assert message in result.stderr


@pytest.fixture
def base_model(tmp_path: Path) -> str:
    """The embedded model as a base model: without a chat template."""
    loaded = load_model("tiny")
    loaded.tokenizer.chat_template = None
    out = tmp_path / "base"
    loaded.base.model.save_pretrained(str(out))
    loaded.tokenizer.save_pretrained(str(out))
    return str(out)


def test_raw_text_trains_a_model_without_a_template(cli: Cli, base_model: str) -> None:
    Path("text.jsonl").write_text("".join(json.dumps({"text": f"The number {n} is even."}) + "\n" for n in range(20)))
    report = cli(
        *("train", "--model", base_model, "--data", "text.jsonl", "--adapter", "full", "--learning-rate", "1e-3"),
        *("--max-steps", "20", "--set", "train.sample_prompt=The number", "--output", "run", "--json"),
    ).report()
    assert report["after"]["held_out_loss"] < 0.5 * report["before"]["held_out_loss"]
    assert report["after"]["sample"].startswith(tuple("0123456789")), "it goes on from the prompt"
    result = cli("generate", "run", "--prompt", "The number 4", "--max-new-tokens", "3")
    assert result.code == 0, result.stderr
    assert "no chat template, so it continues the prompt as plain text" in result.stderr
    result = cli("generate", "run", "--prompt", "Hi", "--system", "Be brief.")
    assert result.code == 6
    assert "has no chat template, which a system message and reasoning modes need" in result.stderr
    shown = cli("data", "stats", "--model", base_model, "--data", "text.jsonl", "--json").report()
    assert shown["sources"][0]["train"] + shown["sources"][0]["held_out"] == 20


def test_conversations_need_a_template(cli: Cli, base_model: str) -> None:
    result = cli("train", "--model", base_model, *QUICK)
    assert result.code == 6
    assert f"the tokenizer of '{base_model}' has no chat template, which conversations need" in result.stderr
    assert not Path("runs").exists()


def test_a_saved_device_has_no_index_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert repeatable("cuda:1") == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert (repeatable("cuda:0"), repeatable("cpu")) == ("cuda", "cpu")


def test_columns_can_be_renamed(cli: Cli) -> None:
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}.", "completion": "not this"} for n in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    named = ("--set", "formatter.prompt=question", "--set", "formatter.completion=answer")
    common = ("--data", "rows.jsonl", "--formatter", "prompt-completion")
    shown = cli("data", "preview", *common, *named)
    assert shown.code == 0, shown.stderr
    assert "It is " in shown.stdout and "not this" not in shown.stdout
    result = cli("data", "preview", *common, *named[:2], "--set", "formatter.completion=reply")
    assert result.code == 5
    assert "rows.jsonl:1: there is no column 'reply' (columns: " in result.stderr
    assert math.isfinite(cli("train", *QUICK, *common, *named, "--json").report()["after"]["held_out_loss"])
