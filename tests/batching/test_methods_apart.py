"""The `packs` value of an adapter's descriptor is correct in a run, with its batches and its Trainer, bitwise.

These tests run every installed adapter, including the PEFT methods, on a random SmolLM3 of two layers.
"""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from smollm3_finetune.api import (
    Base,
    BuildContext,
    Env,
    NoOptions,
    Purpose,
    branched_example,
    flatten_branches,
    has_supervised_logits,
    row_logps,
)
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.batching.attention import attention_within_rows
from smollm3_finetune.batching.strategy import batching
from smollm3_finetune.builtin.sft import SupervisedFineTuning
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.schema import RunConfig, TrainConfig
from smollm3_finetune.errors import UnsupportedOp
from smollm3_finetune.model import LoadedModel
from smollm3_finetune.testing.small import random_model
from smollm3_finetune.train.arguments import arguments
from smollm3_finetune.train.callback import RunCallback
from smollm3_finetune.train.trainer import make_trainer

pytestmark = pytest.mark.plugins

REGISTRY = discover(PluginSelection.of([]))
ADAPTERS = {component.spec.name: component.spec for component in REGISTRY.of(ADAPTER)}

FITTING: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "dropout": 0.3},
    "dora": {"rank": 4, "dropout": 0.3},
    "rslora": {"rank": 4},
    "adalora": {"rank": 3, "initial_rank": 6, "warmup_steps": 0, "final_steps": 2},
    "c3a": {"block_size": 32},
    "fourierft": {"n_frequency": 100},
    "miss": {"rank": 16},
    "osf": {"frozen_rank": 8},
    "psoft": {"rank": 8},
    "pvera": {"rank": 16},
    "randlora": {"rank": 8},
    "road": {"group_size": 32},
    "shira": {"rank": 4},
    "vblora": {"num_vectors": 32, "vector_length": 32},
    "vera": {"rank": 16},
    "waveft": {"n_frequency": 100},
    "trainable-tokens": {"token_ids": (3, 5, 44)},
    "prompt-tuning": {"virtual_tokens": 4},
    "p-tuning": {"virtual_tokens": 4, "encoder_width": 32},
    "prefix-tuning": {"virtual_tokens": 4},
}
"""Options that fit widths of 64 and 128."""

TOKENIZER: Any = SimpleNamespace(pad_token_id=0, eos_token_id=2)
SECOND = list(range(40, 49))
FIRSTS = ([3, 9, 27, 81, 99, 5, 7], [90, 30, 10, 11, 77, 6, 8])
"""Two rows of the same length; one of them precedes `SECOND`."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off garbage collection: every Trainer runs it twice, which takes longer than its steps."""
    monkeypatch.setattr(gc, "collect", lambda *args: 0)


class Gradients(TrainerCallback):  # type: ignore[misc]
    """The gradients that the optimizer gets."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def tiny(dtype: torch.dtype) -> Any:
    """A random SmolLM3 with tied embeddings and one layer without RoPE."""
    model = random_model(
        dtype, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32, intermediate_size=128,
        vocab_size=128, max_position_embeddings=64,
    ).eval().requires_grad_(False)  # fmt: skip
    model.__dict__["name_or_path"] = "someone/tiny-model"
    return model


def composed(method: str) -> LoadedModel:
    """A tiny model with an adapter whose weights were moved from their initial values."""
    dtype = "float32" if method == "psoft" else "float64"  # PEFT does not initialize it in float64
    base = Base(model=tiny(getattr(torch, dtype)), fingerprint="tiny")
    none: Any = None
    context = BuildContext(purpose=Purpose.TRAIN, device="cpu", dtype=dtype, seed=3, cache=none, progress=none)
    choice = choose(REGISTRY, ADAPTER, method, FITTING.get(method, {}))
    adapted = choice.create().attach(base, context, 20)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in adapted.model.parameters():
            if p.requires_grad and p.is_floating_point():
                p.add_(0.02 * torch.randn_like(p))
    plan: Any = SimpleNamespace(adapter=choice, context=context, env=Env(device="cpu"), ref="tiny")
    return LoadedModel(plan=plan, base=base, adapted=adapted)


def looked_at(method: str, first: list[int], out: Path) -> SimpleNamespace:
    """All results of the second row that could depend on the first, which is not supervised."""
    loaded, objective = composed(method), SupervisedFineTuning(NoOptions())
    examples = [
        {"input_ids": first, "labels": [IGNORE_INDEX] * len(first)},
        {"input_ids": SECOND, "labels": [IGNORE_INDEX, IGNORE_INDEX, *SECOND[2:]]},
    ]
    train = TrainConfig(max_steps=1, batch_size=2, padding="never", max_grad_norm=1e30)
    found = SimpleNamespace(logits=[], said=[])
    with batching(train, loaded, objective, TOKENIZER, found.said.append) as collate:
        found.supervised = has_supervised_logits(loaded.model)
        batch = collate(examples)
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        for training in (True, False):
            torch.manual_seed(7)
            found.logits.append(loaded.model.train(training)(**inputs).logits[0, len(first) :].detach())
        found.evaluated = objective.loss_sum(loaded.model, batch)
        loaded.model.zero_grad()
        loaded.model(**batch).loss.backward()
        found.evaluated_gradient = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}
        loaded.model.zero_grad()
        args = arguments(RunConfig(train=train), "cpu", loaded.plan.context.dtype, out)
        display: Any = SimpleNamespace(begin=print, step=print, end=print, say=print)
        callback = RunCallback(loaded, out / "log", display, started=0.0)
        trainer = make_trainer(loaded, objective, examples, collate, args, callback)
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
    found.gradient = gradients.found
    return found


@pytest.mark.parametrize("method", [name for name, spec in ADAPTERS.items() if spec.packs])
def test_replacing_a_row_does_not_change_the_other(method: str, tmp_path: Path) -> None:
    one, other = (looked_at(method, first, tmp_path) for first in FIRSTS)
    assert one.said == [] and one.supervised
    assert all(torch.equal(a, b) for a, b in zip(one.logits, other.logits, strict=True))
    assert one.evaluated == other.evaluated
    for mine, its in ((one.gradient, other.gradient), (one.evaluated_gradient, other.evaluated_gradient)):
        assert max(float(g.abs().max()) for g in mine.values()) > 0
        assert all(torch.equal(mine[name], its[name]) for name in mine)


@pytest.mark.parametrize("method", [name for name, spec in ADAPTERS.items() if spec.packs])
def test_replacing_an_answer_does_not_change_the_other_answer_to_the_prompt(method: str) -> None:
    """Logits and gradients of one answer, bit for bit, in training and in evaluation mode."""
    loaded, prompt = composed(method), [5, 4, 3, 6]

    def of_pair(chosen: list[int], rejected: list[int], *, look_at: int) -> list[torch.Tensor]:
        rows = [
            SimpleNamespace(input_ids=[*prompt, *answer], labels=[*[IGNORE_INDEX] * len(prompt), *answer])
            for answer in (chosen, rejected)
        ]
        batch = flatten_branches([branched_example(rows)])
        end = len(prompt) + len(chosen)
        seen = slice(0, end) if look_at == 0 else slice(end, None)
        found = []
        for training in (True, False):
            torch.manual_seed(7)
            loaded.model.train(training).zero_grad()
            logits = loaded.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0]
            found.append(logits[seen].detach())
        row_logps(loaded.model, batch)[look_at].backward()
        return [*found, *(p.grad.clone() for p in loaded.model.parameters() if p.grad is not None)]

    first, other = FIRSTS
    with attention_within_rows(loaded.base.model, branches=True):
        had = of_pair(SECOND, first, look_at=0), of_pair(first, SECOND, look_at=1)
        now = of_pair(SECOND, other, look_at=0), of_pair(other, SECOND, look_at=1)
    for before, after in zip(had, now, strict=True):
        assert len(before) == len(after) > 2
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("method", [name for name, spec in ADAPTERS.items() if not spec.packs])
def test_a_method_that_mixes_rows_gets_padded_batches(method: str) -> None:
    objective = SupervisedFineTuning(NoOptions())
    insisting = batching(TrainConfig(padding="never"), composed(method), objective, TOKENIZER, print)
    with pytest.raises(UnsupportedOp, match=f"does not work with 'tiny': adapter '{method}' would mix rows"):
        insisting.__enter__()
