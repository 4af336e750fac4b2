"""The work of an eval stage: a report of the model of an earlier stage, in `eval.json`, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Purpose
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.evaluation.plan import EvalSettings, PlannedEvaluation, plan_evaluation
from smollm3_finetune.evaluation.run import check_verdict, evaluate
from smollm3_finetune.evaluation.tasks import select_evaluator, task_references
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import read_json, write_json
from smollm3_finetune.files.writing import whole_directory
from smollm3_finetune.model_files.output import check_vacant
from smollm3_finetune.pipeline.inputs import evaluation_rows
from smollm3_finetune.pipeline.results import EVALUATION
from smollm3_finetune.pipeline.stage import Ref, Stage
from smollm3_finetune.pipeline.work import Work, subject_of
from smollm3_finetune.runs.reopen import own_dtype


def eval_stage(work: Work) -> None:
    """Evaluate, and write the report."""
    check_vacant("output", work.directory)
    planned = planned_evaluation(work)
    for warning in planned.warnings:
        work.warn(warning)
    report = {**evaluate(planned, work.progress), "pipeline": work.about}
    with writing(work.directory), whole_directory(work.directory) as out:
        write_json(out / EVALUATION, report)


def accept_verdict(work: Work) -> None:
    """Raises VerdictError if the verdict of a report is one that `fail_if` does not accept."""
    assert work.stage.evaluate is not None
    check_verdict(read_json(work.directory / EVALUATION), work.stage.evaluate.fail_if)


def planned_evaluation(work: Work) -> PlannedEvaluation:
    """The checked evaluation; both models exist."""
    stage, registry = work.stage, work.registry()
    options = stage.evaluate
    assert options is not None
    check_data(work)
    config = work.loaded().config
    start = stage.start or stage.model or Ref(path=config.model)
    subject = _subject(work, start, config.quant)
    settings = EvalSettings(
        rows=evaluation_rows(stage, subject.loaded),
        limit=options.limit,
        seed=options.seed,
        batch_size=options.batch_size,
        answers=options.answers,
        max_new_tokens=options.max_new_tokens,
        null_adapter=options.null_adapter,
        overlap=options.overlap,
        **tasks_of(work, registry),
    )
    other = None if stage.against is None else _subject(work, stage.against, ComponentConfig())
    planned = plan_evaluation(registry, subject, settings, work.progress, other)
    if options.fail_if is not None and not planned.compares():
        raise _no_verdict(stage)
    if options.fail_if is not None and not planned.rows.rows:
        raise ConfigError(
            f"{stage.origin}: eval.fail_if needs a verdict on held-out rows, but only tasks are measured",
            hint="data: {path: FILE.jsonl} in this stage",
        )
    return planned


def _no_verdict(stage: Stage) -> ConfigError:
    return ConfigError(
        f"{stage.origin}: eval.fail_if needs a verdict, but a model without adapter has no base to compare with",
        hint="against: MODEL in eval",
    )


def _subject(work: Work, ref: Ref, quant: ComponentConfig) -> Any:
    from smollm3_finetune.evaluation.subject import Subject

    found = subject_of(work, ref, "eval", Purpose.INFER, quant)
    config, options = work.loaded().config, work.stage.evaluate
    assert options is not None
    dtype: str = config.dtype
    if dtype == "auto" and found.loaded is not None:
        dtype = own_dtype(found.loaded.config, config.device)
    path = work.path_of(ref)
    return Subject(
        title=str(path) if path is not None else ref.title,
        request=found.request,
        device=config.device,
        dtype=dtype,
        run=found.run,
        loaded=found.loaded,
        check_base=not options.any_base,
    )


def check_data(work: Work) -> None:
    """Raises ConfigError for a model without rows, and for a verdict without something to compare with."""
    stage = work.stage
    options = stage.evaluate
    assert options is not None
    start = stage.start or stage.model
    kind = None if start is None or start.stage is None else work.pipeline.stage(start.stage).kind
    if (kind not in (None, "train") or stage.start is None) and evaluation_rows(stage, None) is None:
        raise ConfigError(
            f"{stage.origin}: the stage {stage.name!r} evaluates a model, which has no held-out rows",
            hint="data: {path: FILE.jsonl} in this stage",
        )
    if (kind not in (None, "train") or stage.start is None) and options.fail_if and stage.against is None:
        raise _no_verdict(stage)


def tasks_of(work: Work, registry: Registry) -> dict[str, Any]:
    """The tasks and their evaluator, as settings. Raises ConfigError for an evaluator without tasks."""
    options = work.stage.evaluate
    assert options is not None
    config = _evaluator(options.evaluator)
    if not options.tasks:
        if options.evaluator is not None:
            raise ConfigError("eval.evaluator needs eval.tasks", hint="tasks: [arc_easy]")
        return {}
    tasks = task_references(options.tasks)
    evaluator: SelectedComponent = select_evaluator(registry, tasks, config)
    return {"tasks": tasks, "evaluator": evaluator}


def _evaluator(value: str | Mapping[str, Any] | None) -> ComponentConfig:
    if value is None or isinstance(value, str):
        return ComponentConfig(name=value)
    options = {k: v for k, v in value.items() if k != "name"}
    return ComponentConfig(name=value.get("name"), options=options)


def evaluation_figures(work: Work) -> dict[str, Any]:
    """The held-out losses and the verdict of a report."""
    about = read_json(work.directory / EVALUATION)
    before, after, comparison = about.get("before"), about.get("after"), about.get("comparison")
    return {
        "before": None if before is None else before.get("held_out_loss"),
        "after": None if after is None else after.get("held_out_loss"),
        "verdict": None if comparison is None else comparison.get("verdict"),
    }
