"""The check of every stage before anything runs.

A stage that takes the result of one that is not finished is checked with a stand-in: the model at the beginning of its
chain, with the quantizer and the adapter that it will have. What cannot be known yet is checked when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from smollm3_finetune.api import Purpose
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.negotiation import pair_problem
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.config.schema import DEFAULT_ADAPTER, ComponentConfig
from smollm3_finetune.data.plan import select_rows
from smollm3_finetune.errors import Collector
from smollm3_finetune.export.plan import check_source
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, plan_model, select_model
from smollm3_finetune.pipeline.configuration import START, evaluated_run, loaded_configuration
from smollm3_finetune.pipeline.decide import Decision
from smollm3_finetune.pipeline.evaluating import check_data, planned_evaluation, tasks_of
from smollm3_finetune.pipeline.exporting import check_loads, chosen_exporter, planned_export
from smollm3_finetune.pipeline.inputs import evaluation_rows, source_of
from smollm3_finetune.pipeline.merging import check_options, planned_merge
from smollm3_finetune.pipeline.quantizing import planned_quantization
from smollm3_finetune.pipeline.results import is_complete
from smollm3_finetune.pipeline.stage import Ref, Stage
from smollm3_finetune.pipeline.training import planned_run
from smollm3_finetune.pipeline.work import Work, subject_of
from smollm3_finetune.quantize.requantize import choose_requantizer
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.plan import RunPlan, plan_run

Plan = Mapping[str, Any]
"""What is known about a stage before it runs: `model`, `quantizer`, `adapter`, `objective`, `rows`."""


def check_stage(work: Work, decision: Decision) -> Plan:
    """Check a stage; nothing is computed or written. Raises what the stage itself would."""
    kind = work.stage.kind
    if decision.action == "keep" or (decision.action == "continue" and is_complete(kind, work.directory)):
        return {}
    check_loads(work)
    if kind == "train":
        return _check_training(work)
    if kind == "merge":
        return _check_merge(work)
    if kind == "export":
        return _check_export(work)
    return _check_quantization(work) if kind == "quantize" else _check_evaluation(work)


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """The model from which the model of an unfinished stage will be made."""

    ref: str
    loader: ComponentConfig
    quant: ComponentConfig
    adapter: ComponentConfig | None = None


def pending(work: Work, ref: Ref | None) -> bool:
    return ref is not None and ref.stage is not None and ref.stage not in work.results


def stand_in(work: Work, name: str) -> StandIn | None:
    """The stand-in for the result of a stage; None if it is not known before an earlier stage is finished."""
    stage = work.pipeline.stage(name)
    loaded = loaded_configuration(work.pipeline, stage, work.results)
    config = loaded.config
    if stage.kind in ("merge", "export"):
        assert stage.start is not None
        if stage.start.stage is None or (base := stand_in(work, stage.start.stage)) is None:
            return None
        _, about = source_of(work.registry(), loaded_with(loaded, base.ref), work.progress)
        if "quantization_config" in about:  # the result will be dense
            return None
        return replace(base, quant=stage.quantize or ComponentConfig(), adapter=None)
    earlier = stage.model or (stage.start if stage.start is not None and stage.start.stage is not None else None)
    if earlier is None or earlier.stage is None:
        if stage.start is not None:  # a run outside of the pipeline decides
            return None
        ref, loader = config.model, config.loader
        quant = (stage.quantize or ComponentConfig()) if stage.kind == "quantize" else config.quant
        return StandIn(ref=ref, loader=loader, quant=quant, adapter=_adapter(stage, config.adapter, None))
    base = stand_in(work, earlier.stage)
    if base is None:
        return None
    if stage.kind == "quantize":
        return replace(base, quant=stage.quantize or ComponentConfig(), adapter=None)
    return replace(
        base,
        quant=config.quant if config.quant.name is not None else base.quant,
        adapter=_adapter(stage, config.adapter, base.adapter),
    )


def _adapter(stage: Stage, own: ComponentConfig, base: ComponentConfig | None) -> ComponentConfig | None:
    if stage.kind != "train":
        return None
    if own.name is None and base is not None:
        return base
    return own if own.name is not None else replace(own, name=DEFAULT_ADAPTER)


def loaded_with(loaded: LoadedConfig, ref: str, quant: ComponentConfig | None = None,
                adapter: ComponentConfig | None = None) -> LoadedConfig:  # fmt: skip
    """The configuration with another model, and perhaps other components."""
    changes: dict[str, Any] = {"model": ref, "start_from": None, "fresh_adapter": False}
    changes |= {} if quant is None else {"quant": quant}
    changes |= {} if adapter is None else {"adapter": adapter}
    settings = tuple(s for s in loaded.settings if s.key[0] not in (START, "fresh_adapter"))
    return replace(loaded, config=replace(loaded.config, **changes), settings=settings)


def _check_training(work: Work) -> Plan:
    stage = work.stage
    ref = stage.model or stage.start
    if not pending(work, ref):
        return _about_run(planned_run(work, RunDir(work.directory)).plan)
    assert ref is not None and ref.stage is not None
    found = stand_in(work, stage.name)
    loaded, registry = work.loaded(), work.registry()
    if found is None:
        return _check_names(work, loaded)
    changed = loaded_with(loaded, found.ref, found.quant, found.adapter)
    return _about_run(plan_run(registry, changed, work.context(Purpose.TRAIN)), ref)


def _check_names(work: Work, loaded: LoadedConfig) -> Plan:
    """Check the names and options of components, and that the rows exist."""
    registry, config, collect = work.registry(), loaded.config, Collector()
    rows = collect.run(lambda: select_rows(registry, loaded))
    chosen = []
    for kind, section in ((QUANTIZER, config.quant), (ADAPTER, config.adapter)):
        if section.name is not None:
            chosen.append(collect.run(lambda k=kind, s=section: choose(registry, k, s.name or "", s, loaded.origins)))  # type: ignore[misc]
    if len(chosen) == 2 and chosen[0] is not None and chosen[1] is not None:
        from smollm3_finetune.components.negotiation import environment
        from smollm3_finetune.model.device import guess_device

        device = guess_device() if config.device == "auto" else config.device
        problem = pair_problem(registry, chosen[0], chosen[1], environment(device, Purpose.TRAIN))
        collect.problems += [] if problem is None else [problem]
    collect.finish()
    assert rows is not None
    return {"objective": rows.objective.component.spec.name}


def _about_run(plan: RunPlan, ref: Ref | None = None) -> Plan:
    rows = {"train": sum(plan.survey.train), "held_out": sum(plan.survey.held_out)}
    about = _about_model(plan.model, ref)
    return {**about, "objective": plan.objective.component.spec.name, "rows": rows}


def _about_model(plan: ModelPlan, ref: Ref | None = None) -> dict[str, Any]:
    return {
        "model": plan.ref if ref is None or ref.stage is None else f"that of {ref.stage}",
        "quantizer": plan.quantizer.component.spec.name,
        "adapter": None if plan.adapter is None else plan.adapter.component.spec.name,
    }


def _check_merge(work: Work) -> Plan:
    stage = work.stage
    assert stage.start is not None
    if not pending(work, stage.start):
        return _about_model(planned_merge(work, only_check=True).plan)
    check_options(work)
    registry = work.registry()
    if stage.quantize is not None and stage.quantize.name is not None:
        choose_requantizer(registry, stage.quantize.name, stage.quantize.options, "cpu", has_rows=True)
    found = stand_in(work, stage.start.stage or "")
    if found is None:
        return {}
    return _about_model(_planned(work, found, Purpose.MERGE), stage.start)


def _check_export(work: Work) -> Plan:
    stage = work.stage
    assert stage.start is not None
    if not pending(work, stage.start):
        return _about_model(planned_export(work).plan)
    choice = chosen_exporter(work)
    found = stand_in(work, stage.start.stage or "")
    if found is None:
        return {}
    merges = found.adapter is not None and choice.spec.takes == "model"
    plan = _planned(work, found, Purpose.MERGE if merges else Purpose.EXPORT)
    check_source(choice, choice.spec, plan.source)
    return _about_model(plan, stage.start)


def _planned(work: Work, found: StandIn, purpose: Purpose) -> ModelPlan:
    request = ModelRequest(
        ref=found.ref, loader=found.loader, quant=found.quant, adapter=found.adapter, purpose=purpose
    )
    registry = work.registry()
    return plan_model(registry, select_model(registry, request), work.context(purpose)())


def _check_quantization(work: Work) -> Plan:
    stage = work.stage
    ref, loaded, registry = stage.model or stage.start, work.loaded(), work.registry()
    if not pending(work, ref):
        return _about_model(planned_quantization(work, loaded).model)
    assert ref is not None and ref.stage is not None
    found = stand_in(work, ref.stage)
    if found is None:
        choose(registry, QUANTIZER, loaded.config.quant.name or "", loaded.config.quant, loaded.origins)
        select_rows(registry, loaded)
        return {}
    return _about_model(planned_quantization(work, loaded, found.ref).model, ref)


def _check_evaluation(work: Work) -> Plan:
    stage, registry = work.stage, work.registry()
    check_data(work)
    if not any(pending(work, ref) for ref in stage.refs()):
        planned = planned_evaluation(work)
        about = _about_model(planned.subject.plan)
        return {
            **about,
            "rows": {"held_out": len(planned.rows.rows)},
            "objective": planned.objective.component.spec.name,
        }
    tasks_of(work, registry)
    if (rows := evaluation_rows(stage, evaluated_run(work.pipeline, stage, work.results))) is not None:
        select_rows(registry, rows)
    start, plan = stage.start or stage.model, dict[str, Any]()
    for ref in stage.refs():
        if ref.stage is None:
            subject_of(work, ref, "eval", Purpose.INFER)
        elif pending(work, ref) and (found := stand_in(work, ref.stage)) is not None:
            model = _planned(work, found, Purpose.INFER)
            plan = _about_model(model, ref) if ref == start else plan
    return plan
