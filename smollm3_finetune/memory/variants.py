"""A planned run with other components or other settings, planned again without reading rows or weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Purpose
from smollm3_finetune.batching.strategy import check_batches
from smollm3_finetune.components.negotiation import missing_ops
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import IncompatibleError
from smollm3_finetune.model.plan import ModelRequest, plan_model, select_model
from smollm3_finetune.progress import Silent
from smollm3_finetune.train.optimizer import check_optimizer_fits

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import RegisteredComponent, Registry
    from smollm3_finetune.components.selection import SelectedComponent
    from smollm3_finetune.train.plan import RunPlan


def with_components(
    plan: RunPlan, registry: Registry, quantizer: RegisteredComponent, adapter: RegisteredComponent
) -> RunPlan:
    """The run with another quantizer and another adapter. A component that the run already has keeps its options.

    Raises the errors of a run that would be started with them: a pair that does not work, a missing package.
    """
    model = plan.model
    assert model.adapter is not None
    quant, tuned = _config(quantizer, model.quantizer), _config(adapter, model.adapter)
    request = ModelRequest(
        ref=model.ref, loader=model.pinned_loader(), quant=quant, adapter=tuned, purpose=Purpose.TRAIN,
        add_tokens=plan.config.data.add_tokens,
    )  # fmt: skip
    context = replace(model.context, progress=Silent())
    selected = select_model(registry, request)
    assert selected.quantizer is not None and selected.adapter is not None
    if missing := missing_ops(selected.quantizer, selected.adapter, model.env):
        raise IncompatibleError(f"the quantizer does not provide {', '.join(missing)}")
    made = plan_model(registry, selected, context, model.source)
    assert made.adapter is not None
    check_batches(plan.config.train, made.adapter, made.env)
    check_optimizer_fits(registry, plan.optimizer, made, plan.layout)
    config = replace(plan.config, quant=made.quantizer.as_config(), adapter=made.adapter.as_config())
    return replace(plan, config=config, model=replace(made, earlier=model.earlier))


def with_training(plan: RunPlan, **settings: Any) -> RunPlan:
    """The run with other values of keys of `train`."""
    return replace(plan, config=replace(plan.config, train=replace(plan.config.train, **settings)))


def _config(component: RegisteredComponent, own: SelectedComponent) -> ComponentConfig:
    if component.full_name == own.component.full_name:
        return own.as_config()
    return ComponentConfig(name=component.full_name)
