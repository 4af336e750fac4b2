"""Measurements during a run: held-out loss every few steps, trackers; also runs on raw text."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from smollm3_finetune import load_model
from smollm3_finetune.model.device import repeatable
from smollm3_finetune.train.measuring import logged
from smollm3_finetune.train.trainer import AdaptedTrainer

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


DROPOUT = ("--max-steps", "4", "--set", "data.limit=40", "--set", "train.sample_tokens=4", "--adapter", "lora")


@pytest.mark.plugins
def test_samples_on_the_way_do_not_change_the_training(cli: Cli) -> None:
    """With dropout, whose random numbers come from the same generators."""
    run = ("train", *DROPOUT, "--adapter-opt", "dropout=0.3", "--adapter-opt", "rank=2", "--json", "--output")
    plain = cli(*run, "plain").report()
    often = ("--set", "train.sample_every=1", "--set", "train.eval_every=1", "--set", "train.keep_best=true")
    result = cli(*run, "sampled", *often)
    report = result.report()
    assert [r["loss"] for r in metrics("sampled") if "loss" in r] == [r["loss"] for r in metrics("plain")]
    assert report["best"]["step"] == 4, "the same adapter is published"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        ours, theirs = (Path(f"{run}/adapter/{name}").read_bytes() for run in ("sampled", "plain"))
        assert ours == theirs
    rows = [json.loads(line) for line in Path("sampled/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert all(r["prompt"] == report["prompt"] for r in rows)
    assert rows[-1]["answer"] == report["after"]["sample"] == plain["after"]["sample"]
    for row in rows:
        assert f"sample after {row['step']} steps: {' '.join(row['answer'].split())}\n" in result.stderr
    assert not Path("plain/samples.jsonl").exists()


def test_a_resumed_run_has_each_sample_once(cli: Cli) -> None:
    every = ("--set", "train.sample_every=1", "--set", "train.save_every=2", "--set", "train.schedule=constant")
    cli("train", *QUICK, *every, "--output", "run", "--json").report()
    expected = Path("run/samples.jsonl").read_text(encoding="utf-8")
    shutil.rmtree("run/checkpoints/checkpoint-4")
    with Path("run/samples.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 5, "prom')  # killed while it was written
    cli("train", "--resume", "run", "--json").report()
    assert Path("run/samples.jsonl").read_text(encoding="utf-8") == expected
    lines = expected.splitlines(keepends=True)
    Path("run/samples.jsonl").write_text("".join(lines[:1]), encoding="utf-8")  # stopped while it answered
    shutil.rmtree("run/checkpoints/checkpoint-4")
    cli("train", "--resume", "run", "--json").report()
    assert Path("run/samples.jsonl").read_text(encoding="utf-8") == expected


class Recorder(TrainerCallback):  # type: ignore[misc]
    """A tracker that records its calls."""

    got: list[dict[str, Any]]
    fails_at = ""

    def __init__(self) -> None:
        self.event("setup")

    def event(self, name: str) -> None:
        if self.fails_at == name:
            raise ValueError("no API key\nand more")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.event("begin")
        type(self).got = [{"run_name": args.run_name}]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.event("log")
        if "eval_loss" in logs:
            self.event("eval_loss")
        self.got.append({**logs, "step": state.global_step})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.event("end")
        self.got.append({"ended": state.global_step})


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "recorder", Recorder)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["recorder"])
    monkeypatch.setattr(Recorder, "fails_at", "")
    return Recorder


def test_a_tracker_gets_the_entries_of_metrics_jsonl(cli: Cli, recorder: type[Recorder]) -> None:
    to = ("--set", "train.report_to=recorder", "--set", "train.eval_every=2")
    cli("train", *QUICK, *to, "--output", "runs/one", "--json").report()
    name, *logs, end = recorder.got
    assert name == {"run_name": "one"}
    assert end == {"ended": 4}, "once, after the held-out loss of the last step"
    mine = metrics("runs/one")
    names = {
        **{k: k for k in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gb")},
        "eval_loss": "held_out_loss",
        "eval_perplexity": "perplexity",
    }
    for theirs, ours in names.items():
        expected = [(r["step"], r[ours]) for r in mine if ours in r]
        assert [(r["step"], r[theirs]) for r in logs if theirs in r] == expected
        assert len(expected) == (2 if theirs.startswith("eval") else 4)


def test_trackers_get_no_directories_of_this_machine() -> None:
    titles = ("/home/me/a/rows.jsonl", "/home/me/b/rows.jsonl", "org/name", "data/rows.csv", "C:\\me\\x.jsonl")
    report = {"held_out_loss": 2.0, "by_source": {title: float(at) for at, title in enumerate(titles)}}
    assert logged(report) == {
        "eval_loss": 2.0, "eval_rows.jsonl_loss": 0.0, "eval_rows.jsonl-2_loss": 1.0, "eval_org-name_loss": 2.0,
        "eval_data-rows.csv_loss": 3.0, "eval_x.jsonl_loss": 4.0,
    }  # fmt: skip


@pytest.mark.parametrize("fails_at", ["setup", "begin", "log", "eval_loss", "end"])
def test_a_tracker_that_fails_never_ends_the_run(cli: Cli, recorder: type[Recorder], fails_at: str) -> None:
    recorder.fails_at = fails_at
    to = ("--set", "train.report_to=[recorder]", "--set", "train.eval_every=2", "--max-steps", "3")
    result = cli("train", *QUICK, *to, "--output", "run")
    assert result.code == 0, result.stderr
    warning = "warning: the tracker recorder failed and gets no more metrics of this run: ValueError: no API key\n"
    assert result.stderr.count("recorder") == result.stderr.count(warning) == 1
    assert "Traceback" not in result.stderr
    assert len(metrics("run")) == 5
    assert Path("run/report.json").exists()


@pytest.mark.parametrize("fails_at", ["log", "end"])
def test_the_run_of_a_tracker_that_failed_is_ended(
    cli: Cli, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    finished = []
    run = SimpleNamespace(finish=lambda: finished.append(True))
    monkeypatch.setattr(Recorder, "_wandb", SimpleNamespace(run=run), raising=False)
    recorder.fails_at = fails_at
    result = cli("train", *QUICK, "--set", "train.report_to=recorder", "--max-steps", "2", "--output", "run")
    assert (result.code, finished, result.stderr.count("recorder failed")) == (0, [True], 1)
    if fails_at == "log":
        assert recorder.got[-1] == {"ended": 2}


def test_a_tracker_is_ended_if_the_run_is_stopped(
    cli: Cli, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = AdaptedTrainer.training_step

    def signalled(self: Any, *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AdaptedTrainer, "training_step", signalled)
    assert cli("train", *QUICK, "--set", "train.report_to=recorder", "--output", "run").code == 143
    assert "ended" in recorder.got[-1]


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
