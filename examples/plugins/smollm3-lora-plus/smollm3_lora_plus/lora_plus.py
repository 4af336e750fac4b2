"""LoRA+ (Hayou et al. 2024, https://arxiv.org/abs/2402.12354): B learns faster than A."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smollm3_finetune.api import OptimizerContext, Role, TrainedParameter
from smollm3_lora_plus.options import LoraPlusOptions


class LoraPlusMaker:
    def __init__(self, options: LoraPlusOptions) -> None:
        self.options = options

    def create(self, parameters: Sequence[TrainedParameter], ctx: OptimizerContext) -> torch.optim.Optimizer:
        """AdamW with groups by learning rate and weight decay. As in the authors' code, vectors have the rate of B."""
        groups = []
        for fast in (False, True):
            for decays in (True, False):
                chosen = [p.parameter for p in parameters if _is_fast(p) is fast and p.decays is decays]
                rate = ctx.learning_rate * (self.options.ratio if fast else 1)
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": ctx.weight_decay if decays else 0.0})
        return torch.optim.AdamW(groups, betas=(self.options.beta1, self.options.beta2), eps=self.options.eps)


def _is_fast(one: TrainedParameter) -> bool:
    return one.role is Role.UP or one.parameter.ndim == 1
