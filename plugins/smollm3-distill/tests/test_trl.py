"""With the whole vocabulary, losses and gradients are those of TRL's generalized Jensen-Shannon divergence."""

from __future__ import annotations

import pytest
import torch
from smollm3_distill.divergence import divergence, outcomes

CASES = [("forward-kl", 0.0), ("reverse-kl", 1.0), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]
"""The divergence, and TRL's beta of the same."""


@pytest.mark.long  # importing TRL takes 10 seconds and more
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("kind", "beta"), CASES)
def test_the_divergences_are_those_of_trl(kind: str, beta: float, temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd", reason="TRL is not installed")
    chance = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(40, 200, generator=chance).double()
    student = (teacher + torch.randn(40, 200, generator=chance)).requires_grad_()
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, temperature=temperature, num_items_in_batch=40
    )
    ids = teacher.topk(200, dim=1).indices
    ours = divergence(
        outcomes(teacher, ids, temperature), outcomes(student, ids, temperature), kind, beta or 0.5
    ).mean()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-12)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
