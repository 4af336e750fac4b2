"""Tests: the promises of every optimizer (conformance kit), and the published algorithm in float64."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from smollm3_muon.newton_schulz import COEFFICIENTS, Muon, orthogonalized
from smollm3_muon.optimizer import MUON

from smollm3_finetune.testing import OptimizerConformance


class TestMuon(OptimizerConformance):
    component = "muon"
    adapters = ("lora", "full")


class TestOriginalScale(OptimizerConformance):
    component = "muon"
    options: ClassVar = {"scale": "original", "nesterov": False}
    learning_rate = 0.02


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def iterated(values: torch.Tensor, iterations: int) -> torch.Tensor:
    """What the iteration does to singular values: an independent computation, without matrices."""
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        values = a * values + b * values**3 + c * values**5
    return values


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (33, 8)], ids=str)
def test_singular_vectors_are_kept_and_singular_values_are_those_of_the_iteration(shape: tuple[int, int]) -> None:
    gradient = matrix(*shape)
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    expected = left @ torch.diag(iterated(values / gradient.norm(), 5)) @ right
    assert (orthogonalized(gradient, dtype=torch.float64) - expected).norm() <= 1e-12 * expected.norm()
    assert (orthogonalized(gradient).double() - expected).norm() <= 5e-2 * expected.norm()  # in bfloat16


def test_five_iterations_are_near_an_orthogonal_matrix() -> None:
    """The published deviation: singular values between about 0.7 and 1.2, instead of 1."""
    values = iterated(torch.logspace(-2, 0, 10_000, dtype=torch.float64), 5)
    assert 0.67 < float(values.min()) < 0.70
    assert 1.13 < float(values.max()) < 1.22
    gradient = matrix(16, 64)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    difference = torch.linalg.matrix_norm(orthogonalized(gradient, dtype=torch.float64) - left @ right, 2)
    assert float(difference) <= 0.33


@pytest.mark.skipif(MUON is Muon, reason="this version of torch has no Muon")
@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_equal_those_of_torch_bit_for_bit(scale: str, nesterov: bool) -> None:
    start = matrix(12, 5).float()
    results = []
    for cls in (Muon, MUON):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = cls([parameter], lr=0.01, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=scale)
        for seed in range(4):
            parameter.grad = matrix(12, 5, seed + 1).float()
            optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(*results)
    assert not torch.equal(results[0], start)
