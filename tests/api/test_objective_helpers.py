"""The functions of `smollm3_finetune.api` for objectives, and the built-in objective, which uses nothing else."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import smollm3_finetune
from smollm3_finetune.api import IGNORE_INDEX, flatten_rows, has_supervised_logits, pad_rows

ROWS = [{"input_ids": [5, 6, 7], "labels": [5, IGNORE_INDEX, 7], "more": [1, 2, 3]}, {"input_ids": [8], "labels": [8]}]


def tokenizer(pad: int | None, eos: int | None = None) -> Any:
    return SimpleNamespace(pad_token_id=pad, eos_token_id=eos)


@pytest.mark.parametrize(("tokens", "filler"), [(tokenizer(2, 4), 2), (tokenizer(0, 4), 0), (tokenizer(None, 4), 4),
                                                (tokenizer(None), 0)])  # fmt: skip
def test_rows_are_padded_on_the_right_to_the_longest(tokens: Any, filler: int) -> None:
    batch = pad_rows(ROWS, tokens)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, filler, filler]],
        "labels": [[-100, -100, 7], [-100, -100, -100]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }
    assert {values.dtype for values in batch.values()} == {torch.int64}


def test_padded_and_flat_rows_have_the_same_supervised_tokens() -> None:
    padded, flat = pad_rows(ROWS, tokenizer(2)), flatten_rows(ROWS)
    assert torch.equal(padded["labels"][padded["attention_mask"] == 1], flat["labels"][0])


def test_an_ordinary_model_has_all_logits() -> None:
    assert not has_supervised_logits(nn.Sequential(nn.Linear(2, 2)))


def test_the_builtin_objective_imports_the_api_alone() -> None:
    source = (Path(smollm3_finetune.__file__).parent / "builtin" / "sft.py").read_text(encoding="utf-8")
    imported = {str(n.module) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)}
    assert {name for name in imported if name.startswith("smollm3_finetune")} == {"smollm3_finetune.api"}
