"""smollm3-lm-eval: results are those of the harness on the merged model, and each fault is one sentence.

`nox -s long` also runs the harness's own command on models that were merged from quantized bases.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import SmolLM3Error
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError, DataError
from smollm3_finetune.evaluation.task_results import TaskResult
from smollm3_finetune.evaluation.tasks import measure_tasks, open_tasks, run_tasks, select_evaluator
from smollm3_finetune.model.load import LoadedModel, load_model
from smollm3_finetune.progress import Silent

pytestmark = pytest.mark.plugins

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
- {{metric: acc, aggregation: mean, higher_is_better: true}}
- {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
DOCUMENTS = 40
WORDS = ("red", "blue and green", "a very dark yellow", "no color at all")


def write_task(directory: Path, name: str = "colors", text: str = TASK) -> Path:
    """A task file, and its rows beside it."""
    rows = directory / f"{name}.jsonl"
    documents = [
        {"question": f"What color is thing {n}?", "choices": WORDS[: 2 + n % 3], "label": n * 7 % (2 + n % 3)}
        for n in range(DOCUMENTS)
    ]
    rows.write_text("".join(json.dumps(d) + "\n" for d in documents))
    file = directory / f"{name}.yaml"
    file.write_text(text.format(name=name, rows=rows))
    return file


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def evaluator_for(task: str | Path, **options: Any) -> Any:
    registry = discover(PluginSelection.of(()))
    return select_evaluator(registry, [str(task)], ComponentConfig(options=options))


def adapted(**more: Any) -> LoadedModel:
    """The embedded model with a LoRA that changes its answers."""
    import torch

    loaded = load_model("tiny", adapter="lora", device="cpu", **more)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return loaded


Answers = Mapping[str, list[list[Any]]]


def of_harness(samples: list[dict[str, Any]]) -> tuple[dict[str, float], Answers]:
    """Accuracy and answers by document in the harness's own samples."""
    values = {str(s["doc_id"]): float(s["acc"]) for s in samples}
    return values, {str(s["doc_id"]): s["filtered_resps"] for s in samples}


def check_equal(result: TaskResult, values: Mapping[str, float], answers: Answers, atol: float = 1e-4) -> float:
    """The largest difference of a log-likelihood; fails if accuracy differs or it exceeds `atol`."""
    return check_documents([asdict(d) for d in result.by_document], values, answers, atol)


def check_documents(
    documents: list[dict[str, Any]], values: Mapping[str, float], answers: Answers, atol: float = 1e-4
) -> float:
    mine = {d["document"]: d for d in documents}
    assert {d: p["after"] for d, p in mine.items()} == values
    largest = max(
        abs(float(a[0]) - float(b[0]))
        for d, pair in mine.items()
        for a, b in zip(pair["after_answer"], answers[d], strict=True)
    )
    assert largest <= atol, largest
    return largest


def merged_by_peft(loaded: LoadedModel, directory: Path) -> Path:
    """The merged model, by transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded.save(directory / "adapter")
    base = AutoModelForCausalLM.from_pretrained(loaded.plan.source.path, dtype="float32")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PEFT uses a former name of transformers
        merged = PeftModel.from_pretrained(base, directory / "adapter").merge_and_unload()
    merged.save_pretrained(directory / "merged")
    loaded.tokenizer.save_pretrained(directory / "merged")
    return directory / "merged"


def test_results_are_those_of_the_harness_on_the_merged_model(tmp_path: Path) -> None:
    """The harness loads the merged model itself, and computes with its own HFLM."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from smollm3_lm_eval.quiet import quiet

    file, loaded = write_task(tmp_path), adapted()
    results = {r.metric: r for r in run_tasks(loaded, evaluator_for(file), [str(file)], batch_size=3)}
    merged = merged_by_peft(loaded, tmp_path)
    with quiet(Silent()):
        tasks = TaskManager(include_defaults=False).load([str(file)])
        model = HFLM(pretrained=str(merged), dtype="float32", device="cpu", batch_size=4)
        found = evaluate(lm=model, task_dict=tasks, bootstrap_iters=0)
    assert found is not None
    acc = results["acc"]
    check_equal(acc, *of_harness(found["samples"]["colors"]))
    assert (acc.after, results["acc_norm"].after) == (
        pytest.approx(found["results"]["colors"]["acc,none"]),
        pytest.approx(found["results"]["colors"]["acc_norm,none"]),
    )
    assert acc.documents == DOCUMENTS
    assert any(d.before_answer != d.after_answer for d in acc.by_document)
    assert acc.verdict in ("better", "worse", "cannot tell")


@pytest.mark.long
@pytest.mark.parametrize("quant", ["none", "bnb-4bit", "gptq"])
def test_results_are_those_of_the_command_of_the_harness(quant: str, cli: Callable[..., Any], isolated: Path) -> None:
    """With a quantized base, the merged model has the dequantized weights."""
    file = write_task(isolated)
    assert (
        cli("train", "--max-steps", "20", "--lr", "5e-3", "--quant", quant, "--device", "cpu", "--output", "run").code
        == 0
    )
    assert cli("merge", "run", "--output", "merged", "--dtype", "float32").code == 0
    evaluated = cli("eval", "run", "--tasks", str(file), "--device", "cpu", "--json")
    assert evaluated.code == 0, evaluated.stderr
    (acc, _) = json.loads(evaluated.stdout)["tasks"]
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", "pretrained=merged"]
    command += ["--tasks", str(file), "--device", "cpu", "--batch_size", "4", "--output_path", "out", "--log_samples"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (log,) = Path("out").rglob("samples_colors_*.jsonl")
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    largest = check_documents(acc["by_document"], *of_harness(samples))
    print(f"{quant}: {acc['line']}, log-likelihoods within {largest:.1e}")


# ------------------------------------------------------------------------------------------------ options


def test_few_shot_examples_and_the_chat_template_change_the_prompts(tmp_path: Path) -> None:
    file, loaded = write_task(tmp_path), load_model("tiny", quant="none", device="cpu")
    prompts = {}
    for name, options in {
        "plain": {},
        "few": {"num_fewshot": 2},
        "chat": {"chat_template": True, "system": "Be brief."},
    }.items():
        evaluator = evaluator_for(file, **options)
        planned = open_tasks(evaluator, [str(file)], limit=2, progress=Silent())
        measure_tasks(loaded, planned)
        opened: Any = planned.opened
        prompts[name] = opened.tasks["colors"].instances[0].args[0]
    assert prompts["plain"] == "Question: What color is thing 0?\nAnswer:"
    assert prompts["few"].count("Question:") == 3
    assert prompts["few"].endswith(prompts["plain"])
    assert "Be brief." in prompts["chat"]
    assert "<|im_start|>" in prompts["chat"]


def test_an_option_out_of_range_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_fewshot"):
        evaluator_for(write_task(tmp_path), num_fewshot=-1)


# ------------------------------------------------------------------------------------------------- errors

F1 = TASK.replace("- {{metric: acc, ", "- {{metric: f1, ").replace("aggregation: mean", "aggregation: f1", 1)
ONLY_F1 = "\n".join(line for line in F1.splitlines() if "acc_norm" not in line)
HUB = TASK.replace("dataset_path: json", "dataset_path: no-such-owner/no-such-dataset").replace(
    "dataset_kwargs: {{data_files: {{test: {rows}}}}}", ""
)
FAULTS: Mapping[str, tuple[str, type[SmolLM3Error], str, str]] = {
    "no metric of documents": (
        ONLY_F1,
        ConfigError,
        "lm-eval computes f1 of 'colors' over all documents together",
        "acc",
    ),
    "not YAML": ("task: [", ConfigError, "is not valid YAML", "new_task_guide"),
    "no task": ("a: 1", ConfigError, "has no key 'task'", "task: my_task"),
    "absent rows": (TASK.replace("{rows}", "absent.jsonl"), DataError, "documents of the task", "working directory"),
    "offline": (HUB, DataError, "are not on this computer and cannot be downloaded", "connect to the network once"),
    "wrong column": (TASK.replace("{{{{label}}}}", "{{{{answer}}}}"), ConfigError, "cannot be used", "--debug"),
    "runs code": (TASK + "unsafe_code: true\n", ConfigError, "runs code that the model writes", "lm-eval run"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_task_is_one_sentence_before_weights(fault: str, tmp_path: Path) -> None:
    text, kind, sentence, hint = FAULTS[fault]
    file = write_task(tmp_path, text=text)
    with pytest.raises(kind, match=sentence) as caught:
        open_tasks(evaluator_for(file), [str(file)], progress=Silent())
    assert hint in (caught.value.hint or "")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("task", "sentence"),
    [("absent.yaml", "the task file 'absent.yaml' does not exist"), ("tasks/mine", "'tasks/mine' does not exist")],
)
def test_a_missing_file_is_an_error(task: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        open_tasks(evaluator_for("a.yaml"), [task], progress=Silent())


def test_a_misspelled_name_has_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a small directory instead of the harness's own tasks, whose index takes seconds."""
    import lm_eval.tasks.manager

    write_task(tmp_path, "colors_of_things")
    monkeypatch.setattr(lm_eval.tasks.manager, "__file__", str(tmp_path / "manager.py"))
    with pytest.raises(ConfigError, match="lm-eval has no task 'color_of_things'") as caught:
        open_tasks(evaluator_for("color_of_things"), ["color_of_things"], progress=Silent())
    assert (caught.value.hint or "").startswith("did you mean 'colors_of_things'?")


def test_a_metric_that_is_not_a_mean_is_left_out_and_said(tmp_path: Path) -> None:
    said: list[str] = []

    class Said(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    file = write_task(tmp_path, text=F1)
    planned = open_tasks(evaluator_for(file), [str(file)], progress=Said())
    opened: Any = planned.opened
    assert opened.metrics("colors") == (["acc_norm"], ["f1"])
    assert "lm-eval: colors without f1, which are not means over documents" in said


# ---------------------------------------------------------------------------------------------- descriptor


@pytest.mark.parametrize(
    ("task", "mine"),
    [("arc_easy", True), ("longproc_countdown_0.5k", True), ("./my.yaml", True), ("MY.YML", True), ("a.jsonl", False),
     ("dir/task", False), ("", False), ("two words", False)],
)  # fmt: skip
def test_names_and_task_files_are_claimed(task: str, mine: bool) -> None:
    from smollm3_lm_eval import claims

    assert claims(task) is mine


def test_values_become_means_as_the_harness_aggregates_them() -> None:
    import numpy as np
    from lm_eval.api import metrics
    from smollm3_lm_eval.evaluator import _mean, _rule

    assert _mean("acc", np.float64(1.0)) == ("acc", 1.0, 1)
    assert _mean("acc", True) == ("acc", 1.0, 1)
    assert _mean("f1", ("gold", "said")) is None
    assert _rule(metrics.f1_score) is None
    items = [(-6.0, 3), (-4.0, 2), (-9.0, 10)]
    for function in (metrics.weighted_perplexity, metrics.bits_per_byte):
        rule = _rule(function)
        assert rule is not None
        found = [rule("m", item) for item in items]
        ratio = sum(f[1] for f in found if f) / sum(f[2] for f in found if f)
        expected = float(np.log(function(items))) if function is metrics.weighted_perplexity else function(items)
        assert ratio == pytest.approx(expected)


def test_an_answer_that_json_cannot_represent_becomes_text() -> None:
    from smollm3_lm_eval.evaluator import _plain

    assert _plain([(-math.inf, True), {1}]) == [["-inf", True], "{1}"]
