"""Packed rows: the same computation as a plain loop over padded rows, and no row influences another."""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    TrainerCallback,
)

from smollm3_finetune.api import Base, BuildContext, Env, NoOptions, Purpose
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.batching.order import Shuffled
from smollm3_finetune.batching.packing import Packed
from smollm3_finetune.batching.strategy import _tolerances, batching
from smollm3_finetune.builtin.sft import SupervisedFineTuning
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.schema import RunConfig, TrainConfig
from smollm3_finetune.errors import UnsupportedOp
from smollm3_finetune.evaluation.held_out_loss import held_out_loss
from smollm3_finetune.model import LoadedModel
from smollm3_finetune.testing.small import SIZES, random_model
from smollm3_finetune.train.arguments import arguments
from smollm3_finetune.train.callback import RunCallback
from smollm3_finetune.train.trainer import make_trainer

VOCABULARY = SIZES["vocab_size"]
TOKENIZER: Any = SimpleNamespace(pad_token_id=0, eos_token_id=2)

Row = dict[str, list[int]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One thread, and no garbage collection: every Trainer runs it twice, which takes longer than its steps."""
    monkeypatch.setattr(gc, "collect", lambda *args: 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(dtype: torch.dtype = torch.float64, config: Any = None, attention: str = "sdpa", **changes: Any) -> Any:
    """A random SmolLM3 whose second layer has no RoPE, or a model of another configuration."""
    # with the usual standard deviation of 0.02, rows would influence each other too little
    model = random_model(dtype, config, std=0.2, attention=attention, **changes)
    if dtype == torch.float64:
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.forward = functools.partial(wide_norm, module)
    return model


def wide_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm in float64: transformers' own rounds to float32 there, which now and then turns 1e-16 into 1e-7."""
    return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def rows(count: int, longest: int = 40, masked: float = 0.4, seed: int = 0) -> list[Row]:
    """Rows of different length; a part of their tokens is not supervised."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(5, longest + 1))]
        labels = [IGNORE_INDEX if rng.random() < masked else i for i in ids]
        labels[-1] = ids[-1]
        made.append({"input_ids": ids, "labels": labels})
    return made


def adapted(model: Any, adapter: str = "full", dtype: str = "float64", **options: Any) -> LoadedModel:
    """`model` with an adapter, as a run composes it."""
    choice = choose(discover(PluginSelection.of([], no_plugins=adapter == "full")), ADAPTER, adapter, options)
    none: Any = None
    context = BuildContext(purpose=Purpose.TRAIN, device="cpu", dtype=dtype, seed=3, cache=none, progress=none)
    base = Base(model=model, fingerprint="small")
    plan: Any = SimpleNamespace(adapter=choice, context=context, env=Env(device="cpu"), ref="small")
    return LoadedModel(plan=plan, base=base, adapted=choice.create().attach(base, context, 20))


def stirred(model: Any, amount: float) -> None:
    """Move the trained weights: one factor of an adapter starts at zero, so it would have no effect."""
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(amount * torch.randn_like(p))


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


class Quiet:
    """Shows nothing."""

    def say(self, message: str) -> None:
        raise AssertionError(message)

    begin = step = end = lambda *args, **kwargs: None


class Kept(TrainerCallback):  # type: ignore[misc]
    """The loss of every forward pass, and the gradients before every optimizer step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []

    def watch(self, trainer: Any) -> None:
        """Losses in full precision; the Trainer sums its logged losses in float32."""
        own = trainer.training_step

        def step(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = own(*args, **kwargs)
            self.losses.append(float(loss))
            return loss

        trainer.training_step = step
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def run_trainer(
    loaded: LoadedModel, items: Any, train: TrainConfig, out: Path, seed: int = 0, dtype: str = "float64"
) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    """The project's own batches and Trainer; the losses of forward passes and the gradients of steps."""
    objective = SupervisedFineTuning(NoOptions())
    kept = Kept()
    with batching(train, loaded, objective, TOKENIZER, Quiet().say) as collate:
        args = arguments(RunConfig(train=train, seed=seed), "cpu", dtype, out)
        out.mkdir(parents=True, exist_ok=True)
        display: Any = Quiet()
        callback = RunCallback(loaded, out / "metrics", display, started=0.0)
        trainer = make_trainer(loaded, objective, items, collate, args, callback)
        kept.watch(trainer)
        trainer.train()
    return kept.losses, kept.gradients


# ---------------------------------------------------------------------------------- equal to plain padding


def by_hand(
    model: Any, batches: Sequence[Sequence[Sequence[Row]]], rate: float
) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    """Padded rows, all logits, an explicit cross-entropy; one optimizer step for each entry of `batches`."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    losses, gradients = [], []
    for micros in batches:
        kept = sum(label != IGNORE_INDEX for micro in micros for row in micro for label in row["labels"][1:])
        loss_of_step = 0.0
        for micro in micros:
            longest = max(len(row["input_ids"]) for row in micro)
            ids = torch.zeros(len(micro), longest, dtype=torch.long)
            mask = torch.zeros(len(micro), longest, dtype=torch.long)
            for i, row in enumerate(micro):
                ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
                mask[i, : len(row["input_ids"])] = 1
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
            targets = [(i, t, label) for i, row in enumerate(micro) for t, label in enumerate(row["labels"][1:])]
            supervised = torch.tensor([target for target in targets if target[-1] != IGNORE_INDEX])  # (N, 3)
            loss = -logits.log_softmax(-1)[tuple(supervised.T)].sum() / kept
            loss.backward()
            loss_of_step += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_of_step)
    return losses, gradients


def drawn(items: Sequence[Any], batch_size: int, accumulation: int, steps: int, seed: int) -> list[list[list[Row]]]:
    """The micro-batches of rows that the run uses in each step, over as many passes as needed."""
    batches: list[list[list[Row]]] = []
    sampler = Shuffled(len(items), seed)
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        order = [items[i] for i in sampler]
        micros = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        plain = [[row for item in micro for row in item.get("rows", [item])] for micro in micros]
        batches += [plain[i : i + accumulation] for i in range(0, len(plain), accumulation)]
        if len(batches) >= steps:
            return batches[:steps]
    raise AssertionError


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max()) for n in a)


def compare(
    make: Callable[[], LoadedModel],
    tmp: Path,
    *,
    packing: bool,
    accumulation: int,
    masked: float,
    steps: int = 20,
    dtype: str = "float64",
    padding: Any = "never",
) -> tuple[float, float, float]:
    """The largest distance of loss, gradients and weights from the plain loop's."""
    examples: Any = rows(30, masked=masked)
    batch_size = 2 if packing else 4
    if packing:
        lengths = np.array([len(e["input_ids"]) for e in examples], dtype=np.int32)
        examples = Packed(examples, lengths, 64, seed=0)
    train = TrainConfig(
        max_steps=steps, batch_size=batch_size, gradient_accumulation=accumulation, learning_rate=1e-3, packing=packing,
        padding=padding, schedule="constant", warmup=0.0,
    )  # fmt: skip
    ours, reference = make(), make()
    losses, gradients = run_trainer(ours, examples, train, tmp, dtype=dtype)
    plain = drawn(examples, batch_size, accumulation, steps, seed=0)
    expected_losses, expected_gradients = by_hand(reference.model, plain, 1e-3)
    assert len(gradients) == steps
    passes = iter(losses)
    losses = [sum(itertools.islice(passes, len(micros))) for micros in plain]
    assert furthest(trained(make().model), trained(ours.model)) > 1e-3, "the run must have moved the weights"
    return (
        max(abs(a - b) for a, b in zip(losses, expected_losses, strict=True)),
        max(furthest(a, b) for a, b in zip(gradients, expected_gradients, strict=True)),
        furthest(trained(ours.model), trained(reference.model)),
    )


@pytest.mark.parametrize(
    ("packing", "accumulation", "masked"),
    [(False, 1, 0.0), (False, 4, 0.4), (True, 1, 0.4), (True, 4, 0.0), (True, 4, 0.4)],
)
def test_twenty_steps_equal_the_plain_padded_loop(
    packing: bool, accumulation: int, masked: float, tmp_path: Path
) -> None:
    """Every weight of a model with tied embeddings, in float64."""
    loss, gradient, weight = compare(
        lambda: adapted(small()), tmp_path, packing=packing, accumulation=accumulation, masked=masked
    )
    assert loss < 1e-10
    assert gradient < 1e-10
    assert weight < 1e-10


def test_padded_rows_whose_first_token_is_supervised_equal_the_plain_loop(tmp_path: Path) -> None:
    """With the padded collator; nothing precedes a first token, so it is not trained on."""
    loss, gradient, weight = compare(
        lambda: adapted(small()), tmp_path, packing=False, accumulation=4, masked=0.0, padding="always"
    )
    assert max(loss, gradient, weight) < 1e-10


@pytest.mark.plugins
@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_logits_in_many_pieces_equal_the_plain_loop(
    packing: bool, trained_head: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows of logits at a time, with the head frozen, as by default, and with LoRA on it."""
    monkeypatch.setattr("smollm3_finetune.batching.head.CPU_LOGIT_BYTES", 3 * 8 * VOCABULARY)
    targets = ("all-linear", "lm_head") if trained_head else ("all-linear",)

    def make() -> LoadedModel:
        loaded = adapted(small(), "lora", rank=4, target_modules=targets)
        stirred(loaded.model, 0.05)
        return loaded

    loss, gradient, weight = compare(make, tmp_path, packing=packing, accumulation=4, masked=0.4)
    assert max(loss, gradient, weight) < 1e-10


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("head", "packing", "accumulation"),
    [("lora", False, 1), ("lora", True, 4), ("lora on tied", True, 1), ("lora on tied", False, 4), ("saved", True, 1)],
)
def test_lora_with_a_trained_head_equals_the_plain_padded_loop(
    head: str, packing: bool, accumulation: int, tmp_path: Path
) -> None:
    targets = ("all-linear",) if head == "saved" else ("all-linear", "lm_head")
    options = {"rank": 4, "target_modules": targets, "modules_to_save": ("lm_head",) if head == "saved" else ()}

    def make() -> LoadedModel:
        loaded = adapted(small(tie_word_embeddings=head == "lora on tied"), "lora", **options)
        stirred(loaded.model, 0.05)
        return loaded

    loss, gradient, weight = compare(make, tmp_path, packing=packing, accumulation=accumulation, masked=0.4)
    assert loss < 1e-10
    assert gradient < 1e-10
    assert weight < 1e-10
    assert any("lm_head" in name for name in trained(make().model))


def test_in_float32_only_rounding_differs(tmp_path: Path) -> None:
    loss, gradient, weight = compare(
        lambda: adapted(small(torch.float32), dtype="float32"), tmp_path, packing=True, accumulation=1, masked=0.4,
        dtype="float32",
    )  # fmt: skip
    assert loss < 1e-5
    assert gradient < 1e-5
    # Adam divides by the size of a gradient, so rounding of a tiny gradient moves a weight by the learning rate.
    assert weight < 1e-4


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("adapter", "options", "computed"),
    [("full", {}, [2, 2]), ("lora", {}, [2, 2]), ("lora", {"layers": (1,)}, [1, 2])],
    ids=["full", "lora", "lora on the second layer"],
)
def test_gradient_checkpointing_changes_nothing(
    adapter: str, options: dict[str, Any], computed: list[int], tmp_path: Path
) -> None:
    found = []
    for checkpointing in (False, True):
        loaded = adapted(small(), adapter, **options)
        passes = [0, 0]

        def count(layer: Any, args: Any, passes: list[int] = passes) -> None:
            passes[layer.layer_idx] += 1

        for layer in loaded.base.model.model.layers:
            layer.self_attn.register_forward_pre_hook(count)
        train = TrainConfig(max_steps=3, batch_size=4, padding="never", gradient_checkpointing=checkpointing)
        found.append((run_trainer(loaded, rows(12), train, tmp_path), trained(loaded.model), passes))
    ((losses, _), weights, once), ((again, _), weights_again, passes) = found
    assert losses == again
    assert furthest(weights, weights_again) < 1e-12
    measuring = once[0] - 3  # before the steps: checks that rows stay separate and where the logits come from
    assert [n - measuring for n in once] == [3, 3]
    assert [n - measuring for n in passes] == [3 * times for times in computed]


def test_held_out_loss_is_the_same_padded_or_not() -> None:
    loaded, objective, held = adapted(small()), SupervisedFineTuning(NoOptions()), rows(11)
    found = []
    for padding, logits in (("always", "all"), ("always", "supervised"), ("never", "all"), ("never", "supervised")):
        train = TrainConfig(padding=padding, logits=logits)  # type: ignore[arg-type]
        with batching(train, loaded, objective, TOKENIZER, Quiet().say) as collate:
            found.append(held_out_loss(loaded.model, objective, held, collate, 4))
    assert len({loss.terms for loss in found}) == 1
    assert max(loss.total for loss in found) - min(loss.total for loss in found) < 1e-10


# ------------------------------------------------------------------------------------------ no row influences another


def other_first_row(examples: list[Row]) -> list[Row]:
    """The same batch with other tokens in the first row, which is not supervised in either."""
    first = [(i + 41) % (VOCABULARY - 3) + 3 for i in examples[0]["input_ids"]]
    return [{"input_ids": first, "labels": [IGNORE_INDEX] * len(first)}, *examples[1:]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", [False, True])
def test_replacing_a_row_does_not_change_the_others_bitwise(packing: bool, attention: str, tmp_path: Path) -> None:
    """Logits, and gradients of the other rows' loss, through the collator and the Trainer, trained and evaluated."""
    mine = rows(3)
    mine[0]["labels"] = [IGNORE_INDEX] * len(mine[0]["labels"])
    objective = SupervisedFineTuning(NoOptions())
    found = []
    for examples in (mine, other_first_row(mine)):
        loaded = adapted(small(attention=attention))
        lengths = np.array([len(e["input_ids"]) for e in examples], dtype=np.int32)
        items: Any = Packed(examples, lengths, 128, seed=0) if packing else examples
        train = TrainConfig(max_steps=1, batch_size=3, packing=packing, padding="never", max_grad_norm=1e30)
        with batching(train, loaded, objective, TOKENIZER, Quiet().say) as collate:
            batch = collate([items[i] for i in range(len(items))])
            assert batch["input_ids"].shape == (1, sum(len(e["input_ids"]) for e in examples))
            evaluated = objective.loss_sum(loaded.model.eval(), batch)
            del batch["labels"]
            logits = [loaded.model.train(mode)(**batch).logits[0, lengths[0] :] for mode in (True, False)]
        found.append((logits, evaluated, run_trainer(loaded, items, train, tmp_path)[1]))
    (logits, evaluated, gradients), (logits_other, evaluated_other, gradients_other) = found
    assert all(torch.equal(a, b) for a, b in zip(logits, logits_other, strict=True))
    assert evaluated == evaluated_other
    assert any(float(g.abs().max()) > 0 for g in gradients[0].values())
    assert all(torch.equal(gradients[0][n], gradients_other[0][n]) for n in gradients[0])


# ----------------------------------------------------------------------------------------- unsupported models


def test_an_unsupported_model_gets_padding_and_a_message_or_is_refused() -> None:
    loaded = adapted(small(torch.float32, BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=VOCABULARY),
                           "eager"), dtype="float32")  # fmt: skip
    objective, said = SupervisedFineTuning(NoOptions()), []
    with batching(TrainConfig(), loaded, objective, TOKENIZER, said.append) as collate:
        assert "attention_mask" in collate(rows(2))
    assert len(said) == 1 and said[0].startswith(
        "padding  rows are padded: the model's code does not use transformers' attention"
    )
    insisting = batching(TrainConfig(packing=True), loaded, objective, TOKENIZER, said.append)
    with pytest.raises(UnsupportedOp, match=r"train\.packing=true does not work with 'small'"), insisting:
        pass


class Narrow(torch.nn.Module):
    """A wrapper as an adapter may add it: its forward accepts only some named arguments."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inside = model

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: bool | None = None) -> Any:
        return self.inside(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_a_wrapper_with_fixed_arguments_trains_on_padded_rows(tmp_path: Path) -> None:
    loaded, reference, said = adapted(small()), small(), []
    assert loaded.adapted is not None
    loaded.adapted.model = Narrow(loaded.base.model)
    objective, held = SupervisedFineTuning(NoOptions()), rows(5)
    with batching(TrainConfig(), loaded, objective, TOKENIZER, said.append) as collate:
        found = held_out_loss(loaded.model, objective, held, collate, 2)
    assert [line.split(":")[1] for line in said] == [
        " the forward of Narrow does not accept position_ids", " the forward of Narrow does not pass on labels",
    ]  # fmt: skip
    losses, _ = by_hand(reference, [[held]], 0.0)
    assert abs(found.mean - losses[0]) < 1e-10


def test_layers_that_round_activations_widen_the_tolerance_only_a_little() -> None:
    """Mixed rows change by about their own size, and must be detected on such layers too."""
    view = SimpleNamespace(forward_rtol=0.1)
    for dtype, exact in (("float64", 1e-5), ("bfloat16", 1e-3)):
        loaded = adapted(small(), dtype=dtype)
        assert _tolerances(loaded)[1] == exact
        rounding = dataclasses.replace(loaded.base, ops_for=lambda layer: view)  # type: ignore[arg-type,return-value]
        loaded = dataclasses.replace(loaded, base=rounding)
        assert all(0.2 < bound < 0.4 for bound in _tolerances(loaded))
