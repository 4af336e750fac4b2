"""float64: loss and gradients of every objective equal the formula of its paper, in every layout and accumulation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from preference_cases import (
    LABELED,
    PAIRS,
    ROWS,
    by_hand,
    cases,
    gradients,
    kto_by_hand,
    kto_case,
    largest_error,
    layout,
    model,
    tokens_by_hand,
    with_reference,
)

pytestmark = pytest.mark.plugins

EXACT = 1e-9
LAYOUTS = ("padded", "flat", "packed", "branched")


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    """The model, and a reference that differs from it."""
    return model(), model(0.05)


class OneProcess:
    """What the Trainer of an objective uses of accelerate."""

    @staticmethod
    def reduce(tensor: Any) -> Any:
        return tensor


def step(objective: Any, both: tuple[Any, Any], kind: str, examples: list[Any], accumulation: int) -> tuple[Any, Any]:
    """The loss and the gradients of a step, as a Trainer computes them in `accumulation` batches; the logged means."""
    tuned, reference = both
    trainer = objective.trainer_class().__new__(objective.trainer_class())
    trainer.accelerator, size = OneProcess(), len(examples) // accumulation
    from smollm3_preference.trainer import StepMeans

    trainer.step_means, total = StepMeans(), torch.zeros((), dtype=torch.float64)
    with layout(kind, objective, tuned) as collate, layout(kind, objective, reference):
        batches = [collate(examples[i : i + size]) for i in range(0, len(examples), size)]
        terms = sum(objective.terms(batch) for batch in batches)
        for batch in batches:
            inputs = with_reference(objective, reference, batch)
            total = total + trainer.compute_loss(tuned, inputs, num_items_in_batch=torch.tensor(terms))
    return (float(total), gradients(tuned, total)), trainer.step_means.take(trainer.accelerator)


@pytest.fixture(scope="module")
def hand(both: tuple[Any, Any]) -> dict[str, tuple[float, dict[str, Any]]]:
    """The mean loss of the pairs and its gradients, by the formulas, from one plain call for each answer."""
    found = {}
    with torch.no_grad():
        base = [[by_hand(both[1], vars(row))[0] for row in rows] for rows in ROWS]
    for name, (_, formula) in cases().items():
        own = [[by_hand(both[0], vars(row)) for row in rows] for rows in ROWS]
        losses = [formula(c, r, *refs, n, m) for ((c, n), (r, m)), refs in zip(own, base, strict=True)]
        loss = sum(losses[1:], losses[0]) / len(losses)
        found[name] = float(loss.detach()), gradients(both[0], loss)
    return found


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("name", list(cases()))
def test_loss_and_gradients_are_those_of_the_paper(
    name: str, kind: str, accumulation: int, both: Any, hand: Any
) -> None:
    objective = cases()[name][0]
    (loss, found), means = step(objective, both, kind, PAIRS, accumulation)
    expected, right = hand[name]
    assert abs(loss - expected) <= EXACT * max(1.0, abs(expected))
    assert largest_error(found, right) <= EXACT
    assert means["margin"] == pytest.approx(means["chosen_reward"] - means["rejected_reward"], abs=1e-12)


@pytest.mark.parametrize(
    ("gains", "others", "expected"),
    [([2.0, 4.0], [3.0, 9.0, 3.0], 4.2), ([2.0], [3.0, 9.0], 6.0), ([2.0], [], 0.0), ([-2.0, -4.0], [], 0.0)],
    ids=["rows in both", "a lone row", "only lone rows", "negative"],
)
def test_a_lone_row_of_a_process_has_no_part_in_the_kl_term(
    gains: list[float], others: list[float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompt would be followed by its own answer. `others` are the rows that count in another process."""
    from smollm3_preference import kto

    class TwoProcesses:
        @staticmethod
        def reduce(tensor: torch.Tensor) -> torch.Tensor:
            return tensor + torch.tensor([sum(others), float(len(others))])

    monkeypatch.setattr(kto, "row_logps", lambda model, batch: torch.tensor(gains))
    batch = {"reference": [{"other": torch.zeros(())} for _ in gains]}
    assert float(kto_case()._kl(None, batch, TwoProcesses())) == pytest.approx(expected)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", ["padded", "flat", "packed"])
def test_kto_is_that_of_the_paper_with_the_kl_term_of_each_batch(kind: str, accumulation: int, both: Any) -> None:
    size = len(LABELED) // accumulation
    expected = kto_by_hand(*both, [LABELED[i : i + size] for i in range(0, len(LABELED), size)])
    right = gradients(both[0], expected)
    (loss, found), means = step(kto_case(), both, kind, LABELED, accumulation)
    assert abs(loss - float(expected)) <= EXACT
    assert largest_error(found, right) <= EXACT
    assert means["margin"] == pytest.approx(means["chosen_reward"] - means["rejected_reward"])


def test_the_kl_term_matters(both: Any) -> None:
    """Otherwise the test above could not fail for a missing one."""
    _, means = step(kto_case(), both, "flat", LABELED, 1)
    assert means["kl"] > 0.1
    assert abs(float(kto_by_hand(*both, [LABELED])) - float(kto_by_hand(*both, [LABELED], kl=False))) > 1e-3


@pytest.mark.parametrize("kind", LAYOUTS[:3])
def test_the_held_out_loss_of_kto_has_no_kl_term_so_that_rows_are_independent(kind: str, both: Any) -> None:
    objective = kto_case()
    with torch.no_grad(), layout(kind, objective, both[0]) as collate, layout(kind, objective, both[1]):
        together = objective.row_losses(both[0], with_reference(objective, both[1], collate(LABELED)))[0]
        alone = [objective.loss_sum(both[0], with_reference(objective, both[1], collate([row])))[0] for row in LABELED]
    expected = [float(kto_by_hand(*both, [[row]], kl=False)) for row in LABELED]
    assert together.tolist() == pytest.approx(expected, abs=EXACT)
    assert alone == pytest.approx(expected, abs=EXACT)


def test_measures_of_rows_are_rewards_margins_and_the_kl_estimate(both: Any) -> None:
    objective = cases()["dpo"][0]
    with torch.no_grad(), layout("branched", objective, both[0]) as collate, layout("branched", objective, both[1]):
        batch = with_reference(objective, both[1], collate(PAIRS))
        found = objective.row_measures(both[0], batch)
        total, terms = objective.loss_sum(both[0], batch)
        for n, rows in enumerate(ROWS):
            own, base = ([tokens_by_hand(m, vars(row)) for row in rows] for m in both)
            ratios = [[float(a - b) for a, b in zip(*answer, strict=True)] for answer in zip(own, base, strict=True)]
            rewards = [0.3 * sum(answer) for answer in ratios]
            squares = [ratio**2 for answer in ratios for ratio in answer]
            assert float(found["chosen_reward"][n]) == pytest.approx(rewards[0], abs=EXACT)
            assert float(found["rejected_reward"][n]) == pytest.approx(rewards[1], abs=EXACT)
            assert float(found["margin"][n]) == pytest.approx(rewards[0] - rewards[1], abs=EXACT)
            assert float(found["accuracy"][n]) == (1.0 if rewards[0] > rewards[1] else 0.0)
            assert float(found["kl"][n]) == pytest.approx(sum(squares) / len(squares) / 2, abs=EXACT)
    assert float(found["loss"].sum()) == pytest.approx(total) and int(found["terms"].sum()) == terms == len(PAIRS)
    assert 0 < float(found["accuracy"].mean()) < 1  # both kinds occur


@pytest.mark.parametrize("name", [n for n in cases() if n.startswith(("dpo", "apo"))])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_model_that_is_its_reference_has_margins_of_exactly_zero(name: str, kind: str, both: Any) -> None:
    objective, tuned = cases()[name][0], both[0]
    with torch.no_grad(), layout(kind, objective, tuned) as collate:
        found = objective.row_measures(tuned, with_reference(objective, tuned, collate(PAIRS)))
    assert not found["margin"].any() and not found["kl"].any()
    assert found["accuracy"].tolist() == [0.5] * len(PAIRS)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_logged_means_are_those_of_all_examples_of_the_step(accumulation: int, both: Any) -> None:
    _, means = step(cases()["apo-zero"][0], both, "flat", PAIRS, accumulation)
    objective = cases()["apo-zero"][0]
    with torch.no_grad(), layout("flat", objective, both[0]) as collate, layout("flat", objective, both[1]):
        rows = objective.row_measures(both[0], with_reference(objective, both[1], collate(PAIRS)))
    assert means == {n: pytest.approx(float(v.mean())) for n, v in rows.items() if n not in ("loss", "terms")}


def test_losses_are_float32_or_wider() -> None:
    objective = cases()["orpo"][0]
    half = model().to(torch.bfloat16)
    with torch.no_grad():
        found = objective.outcome(half, objective.collator(SimpleNamespace(pad_token_id=0, eos_token_id=None))(PAIRS))
    assert {found.losses.dtype, *(v.dtype for v in found.measures.values())} == {torch.float32}


def test_an_answer_of_probability_one_has_finite_odds_and_gradients() -> None:
    from smollm3_preference.losses import odds_ratio

    certain = torch.zeros(2, requires_grad=True)
    loss = odds_ratio(certain, torch.tensor([-0.5, 0.0])).sum()
    loss.backward()
    assert torch.isfinite(loss) and certain.grad is not None and bool(torch.isfinite(certain.grad).all())
