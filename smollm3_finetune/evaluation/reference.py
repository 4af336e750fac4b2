"""Plans the reference of an evaluation: that of the evaluated run, for every model that is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from smollm3_finetune.components.negotiation import check_reference, refined
from smollm3_finetune.errors import IncompatibleError
from smollm3_finetune.reference.plan import ReferencePlan, plan_reference

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.components.selection import SelectedComponent
    from smollm3_finetune.config.schema import TrainConfig
    from smollm3_finetune.evaluation.subject import Subject
    from smollm3_finetune.model.plan import ModelPlan

WITHOUT = "evaluate the run without --against"


def plan_values(
    registry: Registry,
    objective: SelectedComponent,
    train: TrainConfig,
    subjects: Sequence[Subject],
    plans: Sequence[ModelPlan],
) -> ReferencePlan:
    """The reference whose values core computes; without one, the objective may disable the adapter of each model.

    Raises IncompatibleError if it does, or if the reference is the base, and a model has none.
    """
    kind = refined(objective, plans[0].env).reference
    if kind == "none":
        return ReferencePlan()
    gives = hasattr(objective.create(), "reference_values")
    for subject, plan in list(zip(subjects, plans, strict=True))[: 1 if gives else None]:
        if plan.adapter is None:
            raise IncompatibleError(
                f"the loss of objective {objective.spec.name!r} compares a model with its base, but {subject.title!r} "
                "has no adapter",
                hint=WITHOUT,
            )
        check_reference(registry, objective, plan.quantizer, plan.adapter, plan.env)
    if not gives:
        return ReferencePlan()
    config = subjects[0].loaded.config if subjects[0].loaded is not None else None
    continues = config is not None and config.start_from is not None and not config.fresh_adapter
    return plan_reference(registry, objective, plans[0], replace(train, reference="once"), continues=continues)
