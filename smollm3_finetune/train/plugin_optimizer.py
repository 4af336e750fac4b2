"""Creates the optimizer of a plugin for a loaded model, and checks what the plugin returned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune.api import OptimizerContext, OptimizerMaker, TrainedParameter
from smollm3_finetune.components.contract import described
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.errors import PluginError
from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.model.roles import trained_parameters

if TYPE_CHECKING:
    from smollm3_finetune.train.setup import Job

RATE = "learning_rate"
"""The key of the first group's learning rate in the metrics; those of other groups are `learning_rate_ROLE`."""


def optimizer_of(job: Job, loaded: LoadedModel) -> PluginOptimizer | None:
    """The optimizer of a prepared run for its model; None if `train.optimizer` decides."""
    if job.plan.optimizer is None or job.optimizer is None:
        return None
    train = job.plan.config.train
    context = OptimizerContext(
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        total_steps=job.steps,
        seed=job.plan.config.seed,
        device=job.plan.model.context.device,
    )
    return PluginOptimizer(chosen=job.plan.optimizer, maker=job.optimizer, loaded=loaded, context=context)


@dataclass
class PluginOptimizer:
    """The optimizer of a run that a plugin offers."""

    chosen: SelectedComponent
    maker: OptimizerMaker
    loaded: LoadedModel
    context: OptimizerContext
    parameters: Sequence[TrainedParameter] = ()
    """The trained parameters of the adapter, and after `freeze` also those that are frozen."""
    frozen: Sequence[str] = ()
    """The names of the parameters that are in no group."""
    groups: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """For the report: roles, number of parameters and learning rate of each group."""
    rate_names: Mapping[int, str] = field(default_factory=dict)
    """The key in the metrics of each group whose learning rate is shown beside that of the first, by its index."""

    def freeze(self) -> None:
        """Freeze the parameters that the optimizer does not train. Called once, before the Trainer is created.

        Raises PluginError if the plugin returns something that cannot train these parameters, and what it raises.
        """
        adapter = self.loaded.plan.adapter
        assert self.loaded.adapted is not None and adapter is not None
        with attributed_to(adapter.component, "parameter_roles()"):
            self.parameters = trained_parameters(self.loaded.adapted)
        made = self._made(self.parameters)
        used = {id(p) for group in made.param_groups for p in group["params"]}
        rest = [p for p in self.parameters if id(p.parameter) not in used]
        for one in rest:
            one.parameter.requires_grad_(False)
        self.frozen = tuple(one.name for one in rest)
        roles = {id(p.parameter): str(p.role) for p in self.parameters}
        self.groups = tuple(_about(group, roles) for group in made.param_groups)
        self.rate_names = _rate_names(made.param_groups, self.groups)

    def create(self) -> torch.optim.Optimizer:
        """The optimizer for the parameters as they are now: the Trainer may have replaced them since `freeze`."""
        now = dict(self.loaded.model.named_parameters())
        parameters = [
            TrainedParameter(name=p.name, parameter=now[p.name], role=p.role, layer=p.layer, decays=p.decays)
            for p in self.parameters
        ]
        made = self._made(parameters)
        self._attribute_steps(made)
        return made

    def about(self) -> dict[str, Any]:
        """For the report."""
        component = self.chosen.component
        return {
            "name": component.full_name,
            "version": component.version,
            "options": self.chosen.changed_options(),
            "groups": [dict(group) for group in self.groups],
            "frozen_parameters": sum(p.parameter.numel() for p in self.parameters if p.name in set(self.frozen)),
        }

    def _made(self, parameters: Sequence[TrainedParameter]) -> torch.optim.Optimizer:
        component = self.chosen.component
        with attributed_to(component, "create()"):
            made: Any = self.maker.create(parameters, self.context)
        who = f"{component.who}: create()"
        if not isinstance(made, torch.optim.Optimizer):
            raise PluginError(f"{who} returned {described(made)}, not a torch.optim.Optimizer")
        names = {id(p.parameter): p.name for p in parameters}
        seen: set[int] = set()
        for group in made.param_groups:
            rate = group.get("lr")
            if not isinstance(rate, int | float | torch.Tensor) or not 0 <= float(rate) < math.inf:
                raise PluginError(f"{who} gives a group the learning rate {rate!r}", hint="lr=ctx.learning_rate")
            for parameter in group["params"]:
                if id(parameter) not in names:
                    raise PluginError(f"{who} has a parameter that it was not given: {_shown(parameter)}")
                if id(parameter) in seen:
                    raise PluginError(f"{who} has the parameter {names[id(parameter)]!r} twice")
                seen.add(id(parameter))
        if not seen:
            raise PluginError(f"{who} has no parameter in its groups, so nothing would be trained")
        return made

    def _attribute_steps(self, made: torch.optim.Optimizer) -> None:
        """Make an exception in a step of the optimizer an error that names the plugin."""
        component, step = self.chosen.component, made.step

        def attributed(_: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            with attributed_to(component, "step()"):
                return step(*args, **kwargs)

        made.step = MethodType(attributed, made)  # a method: schedulers of torch wrap it once more


def _shown(parameter: Any) -> str:
    """A parameter that has no name."""
    if not isinstance(parameter, torch.Tensor):
        return described(parameter)
    return f"a tensor of shape {tuple(parameter.shape)}"


def _about(group: Mapping[str, Any], roles: Mapping[int, str]) -> dict[str, Any]:
    found = sorted({roles[id(p)] for p in group["params"]})
    count = sum(p.numel() for p in group["params"])
    return {"roles": found, "parameters": count, RATE: float(group["lr"])}


def _rate_names(groups: Sequence[Mapping[str, Any]], about: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The keys in the metrics of the groups whose learning rate differs from that of the first group.

    A group is named by its key `name`, otherwise by its roles. Groups with the same rate share a key.
    """
    found: dict[int, str] = {}
    rates: dict[str, float] = {}
    for index, (group, one) in enumerate(zip(groups, about, strict=True)):
        rate = one[RATE]
        if not one["parameters"] or rate == about[0][RATE] or rate in rates.values():
            continue
        name = group.get("name")
        own = name if isinstance(name, str) and name.isidentifier() else "_".join(one["roles"])
        key, number = f"{RATE}_{own}", 2
        while key in rates:
            key, number = f"{RATE}_{own}_{number}", number + 1
        rates[key] = rate
        found[index] = key
    return found
