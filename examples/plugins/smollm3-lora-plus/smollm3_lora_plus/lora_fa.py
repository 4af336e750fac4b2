"""LoRA-FA (Zhang et al. 2023, https://arxiv.org/abs/2308.03303): A is frozen, so its inputs need not be kept.

The gradient of B is multiplied by the inverse of A Aᵀ, so that the update B A changes the weight in the direction that
is nearest to the gradient of the weight. PEFT's `create_lorafa_optimizer` computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smollm3_finetune.api import IncompatibleError, OptimizerContext, Role, TrainedParameter
from smollm3_lora_plus.options import LoraFaOptions

DELTA = 1e-8  # added to the diagonal of A Aᵀ before it is inverted


class LoraFaMaker:
    def __init__(self, options: LoraFaOptions) -> None:
        self.options = options

    def create(self, parameters: Sequence[TrainedParameter], ctx: OptimizerContext) -> torch.optim.Optimizer:
        """Adam with decoupled weight decay for everything but A, which is in no group.

        Raises IncompatibleError if a layer has not one A and one B of the same rank.
        """
        groups = []
        for decays in (True, False):
            chosen = [p.parameter for p in parameters if p.role is not Role.DOWN and p.decays is decays]
            decay = ctx.weight_decay if decays else 0.0
            if chosen:
                groups.append({"params": chosen, "lr": ctx.learning_rate, "weight_decay": decay})
        return LoraFa(groups, _pairs(parameters), self.options)


def _pairs(parameters: Sequence[TrainedParameter]) -> dict[nn.Parameter, Tensor]:
    """B to A, of each layer."""
    layers: dict[str, list[TrainedParameter]] = {}
    for one in parameters:
        if one.role in (Role.DOWN, Role.UP):
            layers.setdefault(one.layer, []).append(one)
    found = {}
    for layer, pair in layers.items():
        a, b = ([p.parameter for p in pair if p.role is r and p.parameter.ndim == 2] for r in (Role.DOWN, Role.UP))
        if (len(pair), len(a), len(b)) != (2, 1, 1) or a[0].shape[0] != b[0].shape[1]:
            raise IncompatibleError(
                f"optimizer 'lora-fa' needs one A (rank x inputs) and one B (outputs x rank) in the layer {layer}",
                hint="--adapter lora, or another --optimizer",
            )
        found[b[0]] = a[0]
    return found


class LoraFa(torch.optim.Optimizer):  # type: ignore[misc]  # torch is not checked
    """Adam for B with the corrected gradient, and for other parameters with their own."""

    def __init__(self, groups: list[dict[str, Any]], pairs: Mapping[nn.Parameter, Tensor], o: LoraFaOptions) -> None:
        self.pairs = dict(pairs)
        self.inverses: dict[nn.Parameter, Tensor] = {}
        super().__init__(groups, {"betas": (o.beta1, o.beta2), "eps": o.eps, "scaling": o.scaling})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update each parameter that has a gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in (p for p in group["params"] if p.grad is not None):
                    self._update(parameter, self._gradient(parameter, group["scaling"]), group)
        return None

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: Mapping[str, Any]) -> None:
        (beta1, beta2), rate, state = group["betas"], group["lr"], self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
        state["step"] += 1
        state["mean"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = rate * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        parameter.addcdiv_(state["mean"], state["square"].sqrt().add_(group["eps"]), value=-size)
        parameter.mul_(1 - rate * group["weight_decay"])

    def _gradient(self, b: nn.Parameter, scaling: float) -> Tensor:
        assert b.grad is not None
        if b not in self.pairs:
            return b.grad
        if b not in self.inverses:  # A is frozen
            a = self.pairs[b].detach()
            a = a if a.dtype == torch.float64 else a.float()
            eye = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
            self.inverses[b] = torch.linalg.pinv(a @ a.T + DELTA * eye)
        inverse = self.inverses[b]
        return (b.grad.to(inverse.dtype) @ inverse / scaling**2).to(b.dtype)
