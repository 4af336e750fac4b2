"""Whole runs of `smollm3 train` and `smollm3 generate` on the embedded model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune import LoadedModel, load_model
from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.builtin.sft import SupervisedFineTuning
from smollm3_finetune.config.load import Setting, assemble
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.evaluation.held_out_loss import held_out_loss

SCALE = str(Path(__file__).parents[1] / "out_of_tree" / "scale_adapter.py")
QUICK = ("--max-steps", "6", "--set", "data.limit=40", "--set", "train.sample_tokens=4")

Cli = Callable[..., Any]


def metrics(run: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_the_documented_files(cli: Cli) -> None:
    report = cli("train", "--adapter", "full", *QUICK, "--output", "out", "--json").report()
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "adapter", "after.json", "before.json", "checkpoints", "data.json", "metrics.jsonl", "origins.json",
        "report.html", "report.json", "run.yaml", "trained.json", "versions.json",
    ]  # fmt: skip
    rows = metrics("out")
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert all(r["tokens_per_second"] > 0 and math.isfinite(r["loss"]) for r in rows)
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"]
    assert report == json.loads(Path("out/report.json").read_text())
    saved = json.loads(Path("out/adapter/smollm3.json").read_text())
    assert saved["adapter"]["name"] == "smollm3-finetune:full"
    assert saved["model"] == "tiny"


def test_each_run_gets_a_new_directory(cli: Cli) -> None:
    first = cli("train", "--adapter", "full", *QUICK, "--json").report()
    second = cli("train", "--adapter", "full", *QUICK, "--json").report()
    assert first["run"] != second["run"]
    assert Path(first["run"]).parent == Path("runs")
    assert first["after"] == second["after"], "the same seed gives the same run"


def test_a_saved_run_yaml_repeats_the_run(cli: Cli) -> None:
    first = cli("train", "--adapter", "full", *QUICK, "--seed", "3", "--output", "one", "--json").report()
    again = cli("train", "--config", "one/run.yaml", "--output", "two", "--json").report()
    assert again["after"] == first["after"]


def test_an_out_of_tree_adapter_trains_through_p_and_generates(cli: Cli) -> None:
    report = cli("train", "-p", SCALE, "--adapter", "scale", *QUICK, "--output", "out", "--json").report()
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"]
    refused = cli("generate", "out", "--prompt", "What is 2 + 2?")
    assert refused.code == 2
    assert f"-p {SCALE}" in refused.stderr
    answered = cli("generate", "out", "--prompt", "What is 2 + 2?", "--max-new-tokens", "3", "-p", SCALE)
    assert answered.code == 0, answered.stderr
    assert answered.stdout.strip()


def test_generate_answers_with_the_tuned_weights(cli: Cli) -> None:
    report = cli("train", "--adapter", "full", *QUICK, "--learning-rate", "1e-3", "--output", "out", "--json").report()
    prompt = report["prompt"][-1]["content"]
    answered = cli("generate", "out", "--prompt", prompt, "--max-new-tokens", "4", "--json")
    assert json.loads(answered.stdout)["answer"] == report["after"]["sample"]


@pytest.mark.parametrize("adapter", ["full", "scale"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(cli: Cli, adapter: str) -> None:
    common = ("train", "-p", SCALE, "--adapter", adapter, *QUICK, "--set", "train.schedule=constant", "--json")
    whole = cli(*common, "--output", "whole").report()
    cli(*common, "--output", "part", "--max-steps", "3", "--set", "train.save_every=3").report()
    resumed = cli("train", "--resume", "part", "--max-steps", "6", "-p", SCALE, "--json").report()
    assert resumed["steps"] == 6
    assert resumed["after"] == whole["after"], "bit for bit"
    assert resumed["before"] == whole["before"], "what was measured before the first step, not before going on"
    assert resumed["tokens"] == whole["tokens"]
    assert "max_steps: 6" in Path("part/run.yaml").read_text()
    assert [r["step"] for r in metrics("part")] == [1, 2, 3, 4, 5, 6]
    assert [r["loss"] for r in metrics("part")] == [r["loss"] for r in metrics("whole")]


def test_a_trained_adapter_is_kept_if_a_later_step_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory while answering")

    monkeypatch.setattr("smollm3_finetune.train.run.answer", fails)
    result = cli("train", "-p", SCALE, "--adapter", "scale", *QUICK, "--output", "out")
    assert "out of memory while answering" in result.stderr
    assert load_model("tiny", adapter_path="out/adapter", plugins=(SCALE,)).adapted is not None


def test_a_resumed_run_uses_the_new_settings_for_logging_and_saving(cli: Cli) -> None:
    cli("train", "--adapter", "full", *QUICK, "--max-steps", "2", "--output", "part",
                  "--set", "train.save_every=2", "--set", "train.log_every=2", "--json").report()  # fmt: skip
    now = ("--set", "train.save_every=3", "--set", "train.log_every=1")
    report = cli("train", "--resume", "part", "--max-steps", "6", *now, "--json").report()
    assert report["checkpoints"]["saved"] == 2
    assert 0 < report["checkpoints"]["seconds"] < report["seconds"]
    assert [r["step"] for r in metrics("part")] == [2, 3, 4, 5, 6]
    assert sorted(p.name for p in Path("part/checkpoints").iterdir())[-2:] == ["checkpoint-3", "checkpoint-6"]


def test_runs_that_start_in_the_same_second_get_different_directories(isolated: Path) -> None:
    from smollm3_finetune.runs.rundir import RunDir

    both = [RunDir.fresh(None, "tiny-lora") for _ in range(2)]  # neither exists yet
    first, second = (run.reserved().path for run in both)
    assert first != second
    assert first.is_dir() and second.is_dir()


def test_without_a_launcher_one_device_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, only this can be tested: the Trainer reads the device of the run, and one device."""
    from smollm3_finetune.config.schema import RunConfig
    from smollm3_finetune.train.arguments import _on_one_device, arguments

    args = arguments(RunConfig(), "cpu", "float32", tmp_path)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    args._n_gpu = 4  # as TrainingArguments finds on a machine with four GPUs
    _on_one_device(args, "cuda:1")
    assert args.device == torch.device("cuda:1")
    assert args.n_gpu == 1
    assert chosen == ["cuda:1"]


def test_a_resumed_run_keeps_its_fixed_settings(cli: Cli) -> None:
    cli("train", "--adapter", "full", *QUICK, "--output", "part", "--json").report()
    refused = cli("train", "--resume", "part", "--learning-rate", "1e-3")
    assert refused.code == 2
    assert "--learning-rate cannot be used with --resume: the run uses its saved train.learning_rate" in refused.stderr


def test_dry_run_loads_and_writes_nothing(cli: Cli, isolated: Path) -> None:
    result = cli("train", "--adapter", "full", "--dry-run")
    assert result.code == 0, result.stderr
    assert "# suggested by loader 'tiny'" in result.stdout
    assert list(isolated.iterdir()) == []


def test_settings_of_the_user_override_suggestions_of_components(cli: Cli) -> None:
    result = cli("train", "--adapter", "full", "--learning-rate", "0.5", "--dry-run", "--json")
    config = json.loads(result.stdout)["config"]
    assert config["train"]["learning_rate"] == 0.5
    assert config["train"]["max_steps"] == 60
    epochs = cli("train", "--adapter", "full", "--epochs", "2", "--dry-run", "--json")
    assert json.loads(epochs.stdout)["config"]["train"]["max_steps"] is None


def test_held_out_loss_is_the_mean_over_supervised_tokens_for_any_batches() -> None:
    """Compared with a plain float64 computation for each row."""
    loaded = load_model("tiny", dtype="float64")
    model: Any = loaded.model
    objective = SupervisedFineTuning(NoOptions())
    rows = [
        Conversation(
            messages=(
                {"role": "user", "content": "Count to " + "many " * n},
                {"role": "assistant", "content": "one two three " * (n + 1)},
            )
        )
        for n in range(5)
    ]
    examples = _prepared(rows, loaded)
    total, count = 0.0, 0
    for e in examples:
        with torch.no_grad():
            logprob = model(input_ids=torch.tensor([e["input_ids"]])).logits[0].log_softmax(-1)  # (T, V)
        for t, label in enumerate(e["labels"][1:]):
            if label != IGNORE_INDEX:
                total, count = total - float(logprob[t, label]), count + 1
    collate = objective.collator(loaded.tokenizer)
    for batch_size in (1, 2, 5):
        for order in (examples, examples[::-1]):
            found = held_out_loss(model, objective, order, collate, batch_size)
            assert found.terms == count
            assert abs(found.mean - total / count) < 1e-10
            assert abs(found.perplexity - math.exp(total / count)) < 1e-9


def _prepared(rows: Iterable[Conversation], loaded: LoadedModel, max_length: int = 512) -> list[Any]:
    renderer = Renderer(loaded.tokenizer)
    examples = (SupervisedFineTuning(NoOptions()).prepare(row, renderer, max_length) for row in rows)
    return [e for e in examples if e is not None]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_training_loss_is_the_mean_over_supervised_tokens_across_accumulation(cli: Cli, accumulation: int) -> None:
    """The first step's loss, over rows of different length, equals the held-out mean over the same rows."""
    steps = ("--max-steps", "1", "--batch-size", str(8 // accumulation), "--dtype", "float64", "--max-length", "96")
    more = ("--set", f"train.gradient_accumulation={accumulation}", "--set", "data.limit=8")
    cli("train", "--adapter", "full", *steps, *more, "--set", "data.held_out=0", "--output", "out", "--json").report()
    expected = _mean_loss_of_first_rows(8, 96)
    assert abs(metrics("out")[0]["loss"] - expected) < 1e-6  # the Trainer sums micro-batches in float32


def _mean_loss_of_first_rows(count: int, max_length: int) -> float:
    from smollm3_finetune.builtin.formatters import MessagesFormatter
    from smollm3_finetune.data.formatting import formatted
    from smollm3_finetune.data.rows import source_rows
    from smollm3_finetune.data.sources import find_sources

    loaded = load_model("tiny", dtype="float64")
    objective = SupervisedFineTuning(NoOptions())
    rows = formatted(MessagesFormatter(NoOptions()), source_rows(find_sources(None)[0], count))
    examples = _prepared((conversation for _, conversation in rows), loaded, max_length)
    return held_out_loss(loaded.model, objective, examples, objective.collator(loaded.tokenizer), 3).mean


def test_later_layers_of_settings_win() -> None:
    layers = [[Setting(key=("seed",), value=n, origin=f"layer {n}")] for n in (1, 2)]
    loaded = assemble(layers)
    assert (loaded.config.seed, loaded.origin("seed")) == (2, "layer 2")


@pytest.mark.long  # the first command of the README is the same run
@pytest.mark.plugins
def test_train_with_no_arguments_tunes_the_embedded_model(cli: Cli) -> None:
    report = cli("train", "--json").report()
    assert report["after"]["held_out_loss"] < 0.5 * report["before"]["held_out_loss"]
    assert report["after"]["sample"] != report["before"]["sample"]
    losses = [r["loss"] for r in metrics(report["run"])]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert (Path(report["adapter"]) / "adapter_model.safetensors").exists()


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("adapter", "quant"),
    [
        ("dora", "bnb-4bit"),
        pytest.param("lora", "bnb-4bit", marks=pytest.mark.long),
        pytest.param("lora", "bnb-8bit", marks=pytest.mark.long),
        pytest.param("dora", "bnb-8bit", marks=pytest.mark.long),
    ],
)
def test_a_quantized_run_trains_generates_and_resumes(cli: Cli, quant: str, adapter: str) -> None:
    common = ("train", "--quant", quant, "--adapter", adapter, *QUICK, "--set", "train.schedule=constant", "--json")
    whole = cli(*common, "--output", "whole").report()
    assert whole["after"]["held_out_loss"] < whole["before"]["held_out_loss"]
    cli(*common, "--output", "part", "--max-steps", "3", "--set", "train.save_every=3").report()
    resumed = cli("train", "--resume", "part", "--max-steps", "6", "--json").report()
    assert resumed["after"] == whole["after"]
    prompt = whole["prompt"][-1]["content"]
    answered = cli("generate", "whole", "--prompt", prompt, "--max-new-tokens", "4", "--json")
    assert json.loads(answered.stdout)["answer"] == whole["after"]["sample"]


def test_the_command_to_try_names_the_plugin_files_that_it_needs(cli: Cli) -> None:
    done = cli("train", "-p", SCALE, "--adapter", "scale", *QUICK, "--output", "my run")
    assert f"try it         smollm3 generate 'my run' -p {SCALE} --prompt '…'" in done.stdout
    answered = cli("generate", "my run", "-p", SCALE, "--prompt", "What is 2 + 2?", "--max-new-tokens", "3")
    assert answered.code == 0, answered.stderr


CHATTY = """
from smollm3_finetune.api import ObjectiveSpec, hookimpl
from smollm3_finetune.builtin.sft import SFTTrainer, SupervisedFineTuning

class ChattyTrainer(SFTTrainer):
    def compute_loss(self, *args, **kwargs):
        self.log({"loss": 1.0, "margin": 2.0})
        return super().compute_loss(*args, **kwargs)

class Chatty(SupervisedFineTuning):
    def trainer_class(self):
        return ChattyTrainer

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name="chatty", summary="logs on its own", factory="chatty:Chatty", api=2)]
"""


def test_an_objective_may_log_any_values(cli: Cli, plugin_file: Any) -> None:
    plugin = str(plugin_file("chatty", CHATTY))
    common = ("train", "--adapter", "full", "--max-steps", "2", "--set", "train.sample_tokens=2")
    result = cli(*common, "--set", "data.limit=20", "-p", plugin, "--objective", "chatty", "--output", "out")
    assert result.code == 0, result.stderr
    rows = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "learning_rate" in row] == [1, 2]
