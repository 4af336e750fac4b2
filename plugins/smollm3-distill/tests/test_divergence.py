"""Divergences over k + 1 outcomes: values and gradients are those of sums written out in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from smollm3_distill.divergence import divergence, kl, outcomes
from smollm3_distill.teacher import most_probable, normalized
from torch import Tensor

TOKENS, VOCABULARY, K = 7, 50, 6
chance = torch.Generator().manual_seed(3)
TEACHER = 3 * torch.randn(TOKENS, VOCABULARY, generator=chance).double()
STUDENT = TEACHER + torch.randn(TOKENS, VOCABULARY, generator=chance).double()
KINDS = [("forward-kl", 0.5), ("reverse-kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]
EXACT = 1e-9


def probabilities(logits: Tensor, temperature: float) -> list[float]:
    weights = [math.exp(float(x) / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


def merged(values: list[float], ids: list[int]) -> list[float]:
    """The probabilities of the tokens `ids`, and the sum of all others."""
    return [*(values[i] for i in ids), sum(v for i, v in enumerate(values) if i not in ids)]


def written_out(p: list[float], q: list[float], kind: str, beta: float) -> float:
    def of(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x)

    mixture = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    if kind == "jsd":
        return beta * of(p, mixture) + (1 - beta) * of(q, mixture)
    return of(p, q) if kind == "forward-kl" else of(q, p)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, K, VOCABULARY - 1, VOCABULARY])
def test_each_divergence_is_the_sum_written_out(kind: str, beta: float, temperature: float, k: int) -> None:
    ids = TEACHER.topk(k, dim=1).indices
    found = divergence(outcomes(TEACHER, ids, temperature), outcomes(STUDENT, ids, temperature), kind, beta)
    for n in range(TOKENS):
        p, q = (merged(probabilities(x[n], temperature), ids[n].tolist()) for x in (TEACHER, STUDENT))
        assert float(found[n]) == pytest.approx(written_out(p, q, kind, beta), abs=EXACT)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("k", [1, K, VOCABULARY])
def test_gradients_are_those_of_finite_differences(kind: str, beta: float, k: int) -> None:
    ids = TEACHER.topk(k, dim=1).indices
    teacher = outcomes(TEACHER, ids, 1.5)

    def loss(logits: Tensor) -> Tensor:
        return divergence(teacher, outcomes(logits, ids, 1.5), kind, beta)

    assert torch.autograd.gradcheck(loss, STUDENT.clone().requires_grad_(), eps=1e-6, atol=EXACT, rtol=1e-6)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_with_the_whole_vocabulary_it_is_the_divergence_of_all_tokens(kind: str, beta: float) -> None:
    ids, _ = most_probable(TEACHER, 10 * VOCABULARY, 1.0)
    assert ids.shape == (TOKENS, VOCABULARY)
    p, q = TEACHER.log_softmax(1).clone(), STUDENT.clone().requires_grad_()
    found = divergence(outcomes(TEACHER, ids.long()), outcomes(q, ids.long()), kind, beta)
    expected = divergence(p, q.log_softmax(1), kind, beta)
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    gradients = [torch.autograd.grad(x.sum(), q, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=EXACT)
    if kind == "forward-kl":
        torch.testing.assert_close(found, (p.exp() * (p - q.log_softmax(1))).sum(1), rtol=0, atol=EXACT)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_more_tokens_never_lower_the_divergence(kind: str, beta: float) -> None:
    found = []
    for k in (1, 2, 5, 20, VOCABULARY):
        ids = TEACHER.topk(k, dim=1).indices
        found.append(divergence(outcomes(TEACHER, ids), outcomes(STUDENT, ids), kind, beta))
    for fewer, more in pairwise(found):
        assert bool((fewer <= more + 1e-12).all()) and bool((fewer < more).any())
    assert bool((found[0] >= 0).all())


def test_jsd_is_near_the_divergence_that_its_beta_approaches() -> None:
    """JSD(beta) / beta tends to KL(teacher || student), and JSD(beta) / (1 - beta) to KL(student || teacher)."""
    p, q = TEACHER.log_softmax(1), STUDENT.log_softmax(1)
    small = 1e-6
    torch.testing.assert_close(divergence(p, q, "jsd", small) / small, kl(p, q), rtol=1e-3, atol=0)
    torch.testing.assert_close(divergence(p, q, "jsd", 1 - small) / small, kl(q, p), rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1, 10, 60])
def test_stored_values_are_a_distribution_and_nearly_the_same_one(scale: int) -> None:
    """float16: a log-probability changes by at most 2**-11 of itself, so the probable tokens are the most exact."""
    logits = scale * torch.randn(200, 1000, generator=chance).double()
    ids, logps = most_probable(logits, 64, 1.0)
    assert (ids.dtype, logps.dtype, tuple(logps.shape)) == (torch.int32, torch.float16, (200, 65))
    exact, stored = outcomes(logits, ids.long()), normalized(logps, torch.float64)
    torch.testing.assert_close(stored.exp().sum(1), torch.ones(200).double())
    assert bool(torch.isfinite(stored).all())
    assert float(kl(exact, stored).max()) < 1e-6
    assert bool((ids[:, 0] == logits.argmax(1)).all())


def test_an_outcome_of_probability_zero_is_finite() -> None:
    logits = torch.full((1, 5), -math.inf)
    logits[0, 1] = 0.0
    ids, logps = most_probable(logits, 2, 1.0)
    teacher = normalized(logps, torch.float32)
    student = outcomes(torch.zeros(1, 5), ids.long())
    assert ids[0, 0] == 1
    assert float(divergence(teacher, student, "forward-kl")) == pytest.approx(math.log(5))
    assert math.isfinite(float(divergence(teacher, student, "jsd")))
