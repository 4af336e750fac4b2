"""smollm3-distill on small models in float64: losses and gradients are those of the full logits of both models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from smollm3_distill.objective import Distillation
from smollm3_distill.options import DistillOptions
from torch import Tensor

from smollm3_finetune.api import IGNORE_INDEX, ModelError, token_logps
from smollm3_finetune.batching.attention import attention_within_rows
from smollm3_finetune.batching.head import supervised_logits
from smollm3_finetune.testing.small import SIZES, random_model

pytestmark = pytest.mark.plugins
VOCABULARY = SIZES["vocab_size"]
LENGTHS = (9, 14, 5)
TOKENIZER: Any = SimpleNamespace(pad_token_id=0, eos_token_id=None)
chance = torch.Generator().manual_seed(2)
IDS = [torch.randint(3, VOCABULARY, (n,), generator=chance).tolist() for n in LENGTHS]
ROWS = [{"input_ids": ids, "labels": [t if i > 2 else IGNORE_INDEX for i, t in enumerate(ids)]} for ids in IDS]
COUNTS = [n - 3 for n in LENGTHS]
ALL = 10 * VOCABULARY
EXACT = 1e-9
"""Of values that are about 1; the models compute norms in float32, the same in both ways."""
KINDS = ["forward-kl", "reverse-kl", "jsd"]


def objective(**options: Any) -> Distillation:
    return Distillation(DistillOptions(**options))


def student(**changes: Any) -> Any:
    """A model near the teacher, `random_model(std=0.2)`."""
    model = random_model(std=0.2, **changes)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


@contextmanager
def batches(model: Any, made: Distillation, flat: bool, pieces: bool = False) -> Iterator[dict[str, Any]]:
    """A batch of the rows. Flat rows are kept apart, and logits are those of supervised tokens in pieces of four."""
    if not flat:
        yield dict(made.collator(TOKENIZER)(ROWS))
        return
    with attention_within_rows(model):
        if not pieces:
            yield made.flat_collator(TOKENIZER)(ROWS)
            return
        with supervised_logits(model, 4 * VOCABULARY * 8) as on:
            assert on
            yield made.flat_collator(TOKENIZER)(ROWS)


def logits_of(model: Any) -> Tensor:
    """The logits of each supervised token, of each row alone: (N, V)."""
    found = []
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        found.append(logits[torch.tensor(row["labels"][1:]) != IGNORE_INDEX])
    return torch.cat(found)


def exact_reference(made: Distillation) -> list[dict[str, Tensor]]:
    """What `reference_values` returns of the teacher, in float64 and without rounding."""
    logits, options = logits_of(random_model(std=0.2)).detach(), made.options
    ids = logits.topk(min(options.top_k, VOCABULARY), dim=1).indices
    p = (logits / options.temperature).softmax(1)
    kept = p.gather(1, ids)
    others = p.scatter(1, ids, 0.0).sum(1, keepdim=True)
    logps = torch.cat([kept, others], 1).log() if ids.shape[1] < VOCABULARY else kept.log()
    return [{"ids": i, "logps": p} for i, p in zip(ids.split(COUNTS), logps.split(COUNTS), strict=True)]


def written_out(model: Any, made: Distillation) -> Tensor:
    """The loss of each supervised token from all logits of student and teacher: (N,)."""
    o, raw = made.options, logits_of(model)
    teacher = (logits_of(random_model(std=0.2)).detach() / o.temperature).softmax(1)
    q_all = (raw / o.temperature).softmax(1)
    losses = []
    labels = [label for row in ROWS for label in row["labels"] if label != IGNORE_INDEX]
    for n, label in enumerate(labels):
        ids = teacher[n].argsort(descending=True)[: o.top_k]
        rest = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, ids, False)
        p, q = (torch.cat([x[n][ids], *([x[n][rest].sum()[None]] if rest.any() else [])]) for x in (teacher, q_all))
        m = o.beta * p + (1 - o.beta) * q
        divergence = {
            "forward-kl": (p * (p / q).log()).sum(),
            "reverse-kl": (q * (q / p).log()).sum(),
            "jsd": o.beta * (p * (p / m).log()).sum() + (1 - o.beta) * (q * (q / m).log()).sum(),
        }[o.divergence]
        losses.append(o.loss_weight * divergence - (1 - o.loss_weight) * raw[n].log_softmax(0)[label])
    return torch.stack(losses)


def gradients(model: Any, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{"top_k": 7}, {"top_k": ALL}, {"top_k": 7, "temperature": 2.0, "loss_weight": 0.3, "beta": 0.2}],
    ids=["7 tokens", "all tokens", "temperature and weight"],
)
def test_losses_and_gradients_are_those_of_all_logits(kind: str, options: dict[str, Any]) -> None:
    made, model = objective(divergence=kind, **options), student()
    reference = exact_reference(made)
    expected = written_out(model, made)
    wanted = gradients(model, expected.sum())
    assert float(expected.min()) > 1e-3
    for flat, pieces in ((False, False), (True, False), (True, True)):
        with batches(model, made, flat, pieces) as batch:
            found = made.token_losses(model, {**batch, "reference": reference})
            had = gradients(model, found.sum())
        # rows in one batch and rows alone differ by the norms, which transformers computes in float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        for name, gradient in had.items():
            assert float((gradient - wanted[name]).abs().max()) <= 1e-5 * float(wanted[name].abs().max()), name


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_is_exact(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call of the model for both: only float64 rounding may differ."""
    monkeypatch.setattr(f"{__name__}.ROWS", ROWS[1:2])
    monkeypatch.setattr(f"{__name__}.COUNTS", COUNTS[1:2])
    made, model = objective(divergence=kind, top_k=7, loss_weight=0.6), student()
    expected = written_out(model, made)
    wanted = gradients(model, expected.sum())
    batch = {**made.flat_collator(TOKENIZER)(ROWS), "reference": exact_reference(made)}
    del batch["cu_seq_lens_q"], batch["cu_seq_lens_k"]
    found = made.token_losses(model, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    for name, gradient in gradients(model, found.sum()).items():
        assert float((gradient - wanted[name]).abs().max()) <= EXACT * max(1.0, float(wanted[name].abs().max())), name


@pytest.mark.parametrize("flat", [False, True])
def test_the_teacher_is_read_for_each_example(flat: bool) -> None:
    made, teacher = objective(top_k=7), random_model(std=0.2)
    with batches(teacher, made, flat, pieces=True) as batch, torch.no_grad():
        values = made.reference_values(teacher, batch)
    expected = exact_reference(made)
    assert [len(v["ids"]) for v in values] == COUNTS
    for value, own in zip(values, expected, strict=True):
        assert torch.equal(value["ids"].long(), own["ids"])
        torch.testing.assert_close(value["logps"].double(), own["logps"], rtol=2**-11, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_values_change_the_loss_by_less_than_a_thousandth(kind: str) -> None:
    made, model, teacher = objective(divergence=kind, top_k=20), student(), random_model(std=0.2)
    batch = dict(made.collator(TOKENIZER)(ROWS))
    with torch.no_grad():
        rounded, exact = (
            float(made.token_losses(model, {**batch, "reference": values}).sum())
            for values in (made.reference_values(teacher, batch), exact_reference(made))
        )
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=1e-3)


def test_a_student_that_is_its_teacher_has_no_loss() -> None:
    made, model = objective(), random_model(std=0.2)
    batch = dict(made.collator(TOKENIZER)(ROWS))
    with torch.no_grad():
        losses = made.token_losses(model, {**batch, "reference": made.reference_values(model, batch)})
    assert float(losses.abs().max()) < 1e-6


def test_without_weight_the_loss_is_the_cross_entropy() -> None:
    made, model = objective(loss_weight=0.0), student()
    batch = dict(made.collator(TOKENIZER)(ROWS))
    losses = made.token_losses(model, {**batch, "reference": exact_reference(made)})
    torch.testing.assert_close(losses.sum(), -token_logps(model, batch).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("flat", [False, True])
def test_the_measures_of_a_row_are_those_of_its_loss(flat: bool) -> None:
    made, model = objective(loss_weight=0.25, top_k=7), student()
    with batches(model, made, flat) as batch, torch.no_grad():
        batch["reference"] = exact_reference(made)
        measures = made.row_measures(model, batch)
        sums, terms = made.row_losses(model, batch)
        total, count = made.loss_sum(model, batch)
        agreement = logits_of(model).argmax(1) == logits_of(random_model(std=0.2)).argmax(1)
    assert terms.tolist() == measures["terms"].tolist() == COUNTS and count == sum(COUNTS) == made.terms(batch)
    torch.testing.assert_close(sums, measures["loss"])
    assert total == pytest.approx(float(sums.sum()))
    parts = 0.25 * measures["divergence"] + 0.75 * measures["cross_entropy"]
    torch.testing.assert_close(parts * terms, sums)
    expected = torch.stack([part.double().mean() for part in agreement.split(COUNTS)])
    torch.testing.assert_close(measures["agreement"], expected)


def test_a_teacher_with_more_tokens_is_an_error_of_one_sentence() -> None:
    made, model = objective(top_k=3), student()
    batch = dict(made.collator(TOKENIZER)(ROWS))
    reference = exact_reference(made)
    reference[1]["ids"][2, 1] = VOCABULARY
    with pytest.raises(ModelError, match="the teacher has a token 96, but the student has 96 tokens") as caught:
        made.token_losses(model, {**batch, "reference": reference})
    assert "teacher=base" in str(caught.value.hint)
