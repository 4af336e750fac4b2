"""DDP looks for unused parameters only if there can be some."""

from __future__ import annotations

import torch
from torch import nn

from smollm3_finetune.train.distributed.unused import find_unused


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        hidden: torch.Tensor = self.used(x)
        return (self.other(hidden) if both else hidden).sum()


def test_the_search_is_on_if_a_trained_parameter_gets_no_gradient() -> None:
    model, x = Two(), torch.ones(1, 2)
    assert find_unused(model, model(x, both=False), {})
    assert not find_unused(model, model(x, both=True), {})
    model.other.requires_grad_(False)
    assert not find_unused(model, model(x, both=False), {})


def test_the_search_is_on_if_a_router_chooses_parameters() -> None:
    model = Two()
    loss = model(torch.ones(1, 2), both=True)
    assert find_unused(model, loss, {"num_experts": 8})
    assert not find_unused(model, loss, {"num_experts": 0, "hidden_size": 2})


def test_a_checkpointed_layer_counts_as_used() -> None:
    model = Two()
    loss = torch.utils.checkpoint.checkpoint(model, torch.ones(1, 2), True, use_reentrant=False)
    assert not find_unused(model, loss, {})
