"""A null adapter has the method and the size of the tuned one, and random values."""

from __future__ import annotations

import pytest
import torch

from smollm3_finetune.errors import IncompatibleError
from smollm3_finetune.evaluation.null_adapter import randomize


def parameters(**values: torch.Tensor) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_change_of_a_tensor_with_fixed_initial_values_is_random_and_has_the_norm_of_training() -> None:
    """Zeros, as LoRA's second matrix, and values of the base, as the magnitudes of DoRA."""
    change = 0.1 * random(40, 8, seed=1)
    initial = {"zeros": torch.zeros(40, 8), "base": random(40, 8, seed=2)}
    fresh = parameters(**initial)
    randomize(fresh, {name: value + change for name, value in initial.items()}, seed=5)
    for name, value in initial.items():
        moved = fresh[name].detach() - value
        torch.testing.assert_close(moved.norm(), change.norm(), rtol=1e-5, atol=0)
        assert abs(float((moved * change).sum() / moved.norm() / change.norm())) < 0.3  # 320 values: 5 deviations


def test_a_tensor_with_random_initial_values_is_drawn_again_with_the_tuned_norm() -> None:
    drawn = random(40, 8, seed=4)
    fresh = parameters(a=drawn)
    tuned = 3 * random(40, 8, seed=3)
    randomize(fresh, {"a": tuned}, seed=5)
    torch.testing.assert_close(fresh["a"].detach(), drawn * (tuned.norm() / drawn.norm()))


def test_a_trained_state_of_zero_stays_the_identity() -> None:
    fresh = parameters(a=torch.zeros(4, 4), b=torch.ones(4))
    randomize(fresh, {"a": torch.zeros(4, 4), "b": torch.ones(4)}, seed=5)
    assert not fresh["a"].any() and bool((fresh["b"] == 1).all())


def test_the_seed_decides_the_values() -> None:
    made = []
    for seed in (5, 5, 6):
        fresh = parameters(a=torch.zeros(4, 4))
        randomize(fresh, {"a": torch.ones(4, 4)}, seed)
        made.append(fresh["a"].detach())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


@pytest.mark.parametrize("tuned", [{}, {"a": torch.ones(2, 4)}], ids=["absent", "another shape"])
def test_a_method_that_removes_parameters_is_refused_and_nothing_is_changed(tuned: dict[str, torch.Tensor]) -> None:
    fresh = parameters(b=torch.ones(2), a=torch.zeros(4, 4))
    with pytest.raises(IncompatibleError, match="the tuned adapter has no 'a' of the shape"):
        randomize(fresh, {"b": torch.zeros(2), **tuned}, seed=5)
    assert bool((fresh["b"] == 1).all())
