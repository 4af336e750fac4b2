"""Makes the base of a run in its directory, before its weights are loaded."""

from __future__ import annotations

from dataclasses import replace

from smollm3_finetune.api import Purpose
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.model.plan import ModelRequest, plan_model, select_model
from smollm3_finetune.runs.base import own_source
from smollm3_finetune.train.distributed.processes import done_by_main
from smollm3_finetune.train.setup import Job


def on_own_base(job: Job, registry: Registry) -> Job:
    """The job with the base that its run makes for itself, and its model planned on it. Only one process makes it.

    Raises ModelError if the merge is refused.
    """
    plan = job.plan
    assert plan.own_base is not None and plan.model.adapter is not None
    own_base = plan.own_base
    done_by_main(lambda: own_base.make(job.run), "the base of the run")
    base, loader = own_source(job.run, plan.model.ref, plan.model.loader.as_config())
    request = ModelRequest(
        ref=base,
        loader=loader,
        quant=plan.model.quantizer.as_config(),
        adapter=plan.model.adapter.as_config(),
        adapter_path=plan.model.saved.path if plan.model.saved is not None else None,
        purpose=Purpose.TRAIN,
        compared=True,
    )
    model = plan_model(registry, select_model(registry, request), plan.model.context)
    kept = replace(model, earlier=plan.earlier, context=plan.model.context, new_tokens=plan.model.new_tokens)
    return replace(job, plan=replace(plan, model=kept))
