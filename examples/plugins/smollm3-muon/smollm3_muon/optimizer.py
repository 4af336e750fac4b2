"""The optimizer: two optimizers of torch in one, each with its groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from smollm3_finetune.api import OptimizerContext, TrainedParameter
from smollm3_muon import newton_schulz
from smollm3_muon.options import MATRICES, MuonOptions

MUON: Any = getattr(torch.optim, "Muon", newton_schulz.Muon)


class MuonMaker:
    def __init__(self, options: MuonOptions) -> None:
        self.options = options

    def create(self, parameters: Sequence[TrainedParameter], ctx: OptimizerContext) -> torch.optim.Optimizer:
        """Muon for matrices, AdamW for the rest."""
        matrices = [p for p in parameters if p.role in MATRICES and p.parameter.ndim == 2]
        rest = [p for p in parameters if p.role not in MATRICES or p.parameter.ndim != 2]
        options, made = self.options, {}
        if matrices:
            made["muon"] = MUON(
                _groups(matrices, ctx, options.ratio),
                momentum=options.momentum,
                nesterov=options.nesterov,
                ns_steps=options.iterations,
                adjust_lr_fn="match_rms_adamw" if options.scale == "rms" else "original",
            )
        if rest:
            made["adamw"] = torch.optim.AdamW(_groups(rest, ctx, 1.0))
        return Together(made)


def _groups(parameters: Sequence[TrainedParameter], ctx: OptimizerContext, ratio: float) -> list[dict[str, Any]]:
    """A group with weight decay, and one without."""
    found = []
    for decays in (True, False):
        if chosen := [p.parameter for p in parameters if p.decays is decays]:
            decay = ctx.weight_decay if decays else 0.0
            found.append({"params": chosen, "lr": ctx.learning_rate * ratio, "weight_decay": decay})
    return found


class Together(torch.optim.Optimizer):  # type: ignore[misc]  # torch is not checked
    """Optimizers that take their steps together. Groups and states are held here; each group names its optimizer."""

    def __init__(self, made: Mapping[str, torch.optim.Optimizer]) -> None:
        self.made = dict(made)
        super().__init__([{**group, "by": by} for by, one in self.made.items() for group in one.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """A step of each optimizer on its groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for by, one in self.made.items():  # a loaded state replaces groups and states, so they are handed over here
            one.param_groups = [group for group in self.param_groups if group["by"] == by]
            one.state = self.state
            one.step()
        return loss
