"""Rows that an objective refuses are faults of the row; its other exceptions and wrong examples are its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGIN = """
from smollm3_finetune.api import DataError, NoOptions, ObjectiveSpec, hookimpl
from smollm3_finetune.builtin.sft import SupervisedFineTuning

class Hinted(ValueError):
    hint = "shorten the question"

class Strict(SupervisedFineTuning):
    def prepare(self, conversation, renderer, max_length):
        example = dict(super().prepare(conversation, renderer, max_length))
        question = conversation.messages[0]["content"]
        if question.startswith("raise "):
            raise eval(question.removeprefix("raise "))
        if question == "another name":
            example["weight"] = [1]
        return example

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name="strict", summary="strict", factory="strict:Strict", api=2)]
"""


@pytest.mark.parametrize(
    ("question", "code", "words"),
    [
        ("raise ValueError('too short')", 5, ["rows.jsonl:2: too short", "fix the row, or remove it"]),
        ("raise Hinted('too long')", 5, ["rows.jsonl:2: too long", "shorten the question"]),
        ("raise DataError('no', hint='add it')", 5, ["rows.jsonl:2: no", "add it"]),
        ("raise ValueError", 5, ["rows.jsonl:2: objective 'strict' rejects the row"]),
        ("raise KeyError('weight')", 7, ["rows.jsonl:2: ", "'strict'", "KeyError: 'weight'"]),
        ("another name", 7, ["rows.jsonl:2: ", "the keys ['input_ids', 'labels', 'weight'], but ['input_ids', "]),
    ],
)  # fmt: skip
def test_a_row_that_prepare_refuses_is_named_with_the_reason(
    cli: Callable[..., Any], plugin_file: Any, question: str, code: int, words: list[str]
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "An answer."}]}
        for text in ("A question?", question, "Another one?")
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = cli(
        "data", "stats", "-p", plugin_file("strict", PLUGIN), "--objective", "strict", "--data", "rows.jsonl",
        "--set", "data.held_out=0",
    )  # fmt: skip
    assert result.code == code, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


PAIRS = """
import numpy as np
import torch

from smollm3_finetune.api import ObjectiveSpec, hookimpl
from smollm3_finetune.builtin.sft import SupervisedFineTuning

class Pairs(SupervisedFineTuning):
    def prepare(self, conversation, renderer, max_length):
        if "odd" in conversation.messages[0]["content"]:
            renderer.note("without a rejected answer")
            return None
        return super().prepare(conversation, renderer, max_length)

    def trainer_class(self):
        class Logging(super().trainer_class()):
            def log(self, logs, *args, **kwargs):
                if "loss" in logs:
                    logs = {**logs, "margin": 0.25, "kind": "text", "right": True}
                    logs |= {"kept": torch.tensor(0.75), "share": np.float32(0.5), "count": np.int64(3)}
                super().log(logs, *args, **kwargs)

        return Logging

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name="pairs", summary="pairs", factory="pairs:Pairs", api=2)]
"""


def test_rows_that_the_objective_skips_have_its_note_as_the_reason(cli: Callable[..., Any], plugin_file: Any) -> None:
    row = {"messages": [{"role": "user", "content": "odd"}, {"role": "assistant", "content": "An answer."}]}
    Path("rows.jsonl").write_text(2 * (json.dumps(row) + "\n"), encoding="utf-8")
    result = cli(
        "train", "-p", plugin_file("pairs", PAIRS), "--objective", "pairs", "--data", "rows.jsonl", "--adapter", "full",
        "--set", "data.held_out=0", "--device", "cpu",
    )  # fmt: skip
    assert result.code == 5, result.stderr
    right = "the objective trains on none of the 2 training rows; the first is rows.jsonl:1: without a rejected answer"
    assert f"error: {right}\n" in result.stderr


def test_numbers_that_an_objective_adds_to_the_logs_are_in_the_metrics(
    cli: Callable[..., Any], plugin_file: Any
) -> None:
    result = cli(
        "train", "-p", plugin_file("pairs", PAIRS), "--objective", "pairs", "--adapter", "full", "--device", "cpu",
        "--max-steps", "2", "--output", "run", "--set", "data.limit=20", "--set", "train.sample_tokens=2",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["margin"] for line in steps] == [0.25, 0.25]
    assert not any("kind" in line or "right" in line for line in steps)
    assert [(line["kept"], line["share"], line["count"]) for line in steps] == 2 * [(0.75, 0.5, 3.0)], "also of PyTorch"
    state = json.loads(Path("run/checkpoints/checkpoint-2/trainer_state.json").read_text(encoding="utf-8"))
    assert [entry["kept"] for entry in state["log_history"]] == [0.75, 0.75]
