"""The evaluator passes the conformance kit, with a task of each kind of request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from smollm3_finetune.testing import EvaluatorConformance

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
{more}
"""
CHOICES = """doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"""
GENERATED = """doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""
TEXT = """doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]"""


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def write_task(directory: Path, name: str, kind: str, more: str) -> str:
    rows = directory / f"{name}.jsonl"
    documents = [
        {"question": f"What is {n} and {n}?", "choices": ["one", "two of them"], "label": n % 2} for n in range(5)
    ]
    rows.write_text("".join(json.dumps(d) + "\n" for d in documents))
    file = directory / f"{name}.yaml"
    file.write_text(TASK.format(name=name, rows=rows, kind=kind, more=more))
    return str(file)


class TestChoices(EvaluatorConformance):
    component = "lm-eval"
    unknown = "no-such-task.yaml"

    def task(self, directory: Path) -> str:
        return write_task(directory, "choices", "multiple_choice", CHOICES)


class OtherRequests(TestChoices):
    """The descriptor is tested once."""

    __test__ = False

    def test_claims_its_task_and_no_nonsense(self, tmp_path: Path) -> None:
        pytest.skip("tested with multiple choice")

    test_claims_is_light = test_claims_its_task_and_no_nonsense


class TestGenerated(OtherRequests):
    __test__ = True
    options: ClassVar = {"chat_template": True, "num_fewshot": 0}

    def task(self, directory: Path) -> str:
        return write_task(directory, "generated", "generate_until", GENERATED)


class TestText(OtherRequests):
    __test__ = True

    def task(self, directory: Path) -> str:
        return write_task(directory, "text", "loglikelihood_rolling", TEXT)
