"""Decides before weights are read which model is the reference of a run, and when its values are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from smollm3_finetune.components.kinds import OBJECTIVE
from smollm3_finetune.components.negotiation import check_reference, refined
from smollm3_finetune.errors import ConfigError, IncompatibleError, PluginError
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.model_files.imports import import_trainer
from smollm3_finetune.reference.other_model import own_model, plan_other_model, without_parts

if TYPE_CHECKING:
    from smollm3_finetune.api import Objective
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.components.selection import SelectedComponent
    from smollm3_finetune.config.schema import TrainConfig

EACH_STEP = "--set train.reference=each-step"
ONCE = "--set train.reference=once"


@dataclass(frozen=True, kw_only=True)
class ReferencePlan:
    """The reference of a run."""

    kind: Literal["none", "base", "start", "model"] = "none"
    """As the objective declares it for its options."""
    exchanged: bool = False
    """Whether the start is not the base, so that its trained parameters are saved and exchanged."""
    once: bool = False
    """Whether its values are computed before the first step and stored."""
    model: ModelPlan | None = None
    """The other model."""
    own: bool = False
    """Whether the other model is the source of the trained one."""

    def model_of(self, trained: ModelPlan) -> ModelPlan | None:
        """The other model; its source is that of the `trained` one, which a run may have made since it was planned."""
        if self.model is None or not self.own:
            return self.model
        return without_parts(trained, self.model.quantizer)

    def about(self) -> dict[str, Any]:
        """For the report of a run."""
        found: dict[str, Any] = {"kind": self.kind, "computed": "once" if self.once else "each-step"}
        return found if self.model is None else {**found, "model": self.model.ref}

    def line(self) -> str:
        """What it is and when it is computed, for `--dry-run`; empty without a reference."""
        what = {
            "none": "",
            "base": "its base",
            "start": f"itself before the first step, {START_SAVED if self.exchanged else START_IS_BASE}",
            "model": f"{'its own source' if self.own else 'the model'} {self.model.ref!r}" if self.model else "",
        }[self.kind]
        when = "computed once, before the first step" if self.once else "computed in each step"
        return f"the loss compares the model with {what}; {when}" if what else ""


START_IS_BASE = "which is its base"
START_SAVED = "whose trained weights are saved in start/"


def plan_reference(
    registry: Registry,
    objective: SelectedComponent,
    model: ModelPlan,
    train: TrainConfig,
    *,
    continues: bool,
    shares: bool = False,
) -> ReferencePlan:
    """The reference of a run; `continues`: whether the run begins with an adapter that was trained before.

    `shares`: whether the processes of the run share the weights.

    Raises IncompatibleError if the adapter does not support it, and ConfigError if `train.reference` does not fit.
    """
    assert model.adapter is not None
    check_reference(registry, objective, model.quantizer, model.adapter, model.env)
    kind, once = refined(objective, model.env).reference, train.reference == "once"
    if kind == "none":
        if once:
            raise ConfigError(
                f"train.reference=once needs an objective with a reference; {OBJECTIVE.flag} {objective.spec.name} "
                "has none",
                hint=EACH_STEP,
            )
        return ReferencePlan()
    ref, other = refined(objective, model.env).reference_model, None
    if kind == "model":
        own = ref is None
        other = own_model(registry, objective, model) if own else plan_other_model(registry, objective, ref, model)
    adapter = refined(model.adapter, model.env)
    exchanged = kind == "start" and (continues or not (adapter.identity_at_start and adapter.disables))
    if exchanged and not once and shares:
        raise IncompatibleError(
            f"{OBJECTIVE.flag} {objective.spec.name} compares the model with its start, whose weights cannot be "
            "exchanged in each step if the processes share the weights",
            hint=ONCE,
        )
    return ReferencePlan(kind=kind, exchanged=exchanged, once=once or other is not None, model=other, own=ref is None)


def check_values(plan: ReferencePlan, selected: SelectedComponent, train: TrainConfig) -> None:
    """Raises PluginError if the objective does not give the values that its descriptor promises.

    Raises ConfigError if it computes its reference itself, in each step, and `train.reference` is `once`, and if its
    reference depends on the rows that share a batch, and the values are computed once or batches have one row.
    """
    if plan.kind == "none":
        return
    import_trainer()  # before the objective does, which is slower
    objective: Objective = selected.create()
    title = selected.component.title
    if not hasattr(objective, "reference_values"):
        if plan.kind != "base":
            raise PluginError(f"{title} declares reference={plan.kind!r}, but has no method reference_values()")
        if train.reference == "once":
            raise ConfigError(
                f"train.reference=once needs an objective with reference_values(); {title} does not have it",
                hint=EACH_STEP,
            )
        return
    names = getattr(objective, "reference_options", None)
    if names is None or isinstance(names, str):
        raise PluginError(
            f"{title} has reference_values(), but no reference_options: the names of the options on which the values "
            "depend",
            hint="reference_options = ()",
        )
    if getattr(objective, "reference_needs_batch", False):
        why = f"{title}, whose reference depends on the rows that share a batch"
        if train.reference == "once":
            raise ConfigError(f"train.reference=once does not work with {why}", hint=EACH_STEP)
        if train.batch_size == 1 and not train.packing:
            raise ConfigError(f"train.batch_size=1 does not work with {why}", hint="--batch-size 2")
    if unknown := sorted({*names} - {*vars(selected.options)}):
        raise PluginError(f"reference_options of {title} names {unknown[0]!r}, which is not an option of it")
