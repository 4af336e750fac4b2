"""A plugin file with optimizers for tests: AdamW as the transformers Trainer has it, and others with one trait each."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import NoOptions, OptimizerContext, OptimizerSpec, TrainedParameter, hookimpl

if TYPE_CHECKING:
    from torch.optim import Optimizer


def adamw_bytes(options: NoOptions, shape: tuple[int, ...], role: str) -> int:
    return 8 * prod(shape) + 4


def spec(name: str, maker: str = "Plain", **more: Any) -> OptimizerSpec:
    traits = {"state_bytes": adamw_bytes, **more}
    return OptimizerSpec(name=name, summary="for tests", factory=f"{__name__}:{maker}", api=2, **traits)


@hookimpl
def smollm3_optimizers() -> list[OptimizerSpec]:
    return [
        spec("plain", shards=True),
        spec("needs-up", needs_roles={"up"}),
        spec("freezes-scales", "WithoutScales", freezes={"scale"}),
        spec("two-rates", "TwoRates"),
        spec("unknown-memory", state_bytes=None),
        spec("fails-later", "FailsLater"),
    ]


class Plain:
    def __init__(self, options: NoOptions) -> None:
        pass

    def create(self, parameters: Sequence[TrainedParameter], ctx: OptimizerContext) -> Optimizer:
        import torch

        groups = self.groups(self.trained(parameters), ctx)
        return torch.optim.AdamW([group for group in groups if group["params"]])

    def trained(self, parameters: Sequence[TrainedParameter]) -> list[TrainedParameter]:
        return list(parameters)

    def groups(self, parameters: list[TrainedParameter], ctx: OptimizerContext) -> list[dict[str, Any]]:
        """As the Trainer: with weight decay, and without."""
        return [
            {
                "params": [p.parameter for p in parameters if p.decays is decays],
                "lr": ctx.learning_rate,
                "weight_decay": ctx.weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]


class WithoutScales(Plain):
    def trained(self, parameters: Sequence[TrainedParameter]) -> list[TrainedParameter]:
        return [p for p in parameters if p.role != "scale"]


class TwoRates(Plain):
    def groups(self, parameters: list[TrainedParameter], ctx: OptimizerContext) -> list[dict[str, Any]]:
        return [
            {"params": [p.parameter for p in parameters if (p.role == "up") is up], "lr": ctx.learning_rate * factor}
            for up, factor in ((False, 1), (True, 4))
        ]


class FailsLater(Plain):
    def create(self, parameters: Sequence[TrainedParameter], ctx: OptimizerContext) -> Optimizer:
        made = super().create(parameters, ctx)
        step, taken = made.step, []

        def failing(*args: Any, **kwargs: Any) -> Any:
            taken.append(1)
            if len(taken) > 2:
                raise IndexError("no third step")
            return step(*args, **kwargs)

        made.step = failing
        return made
