"""Tasks: an evaluator opens them before weights are read, measures models on them, and two models are paired.

    evaluator = select_evaluator(registry, tasks, ComponentConfig())
    for result in run_tasks(load_model("tiny", adapter_path="run/adapter"), evaluator, tasks):
        print(result.line())

The statistics are those of the held-out loss (`verdict.py`); the rows are documents.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import (
    DocumentScore,
    EvaluatedModel,
    EvaluationContext,
    OpenedTasks,
    Progress,
)
from smollm3_finetune.components.kinds import EVALUATOR
from smollm3_finetune.components.registry import RegisteredComponent, Registry, attributed_to, known_components
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent, choose, with_options
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError, PluginError, first_line, raise_all
from smollm3_finetune.evaluation.random_state import seeded_everywhere
from smollm3_finetune.evaluation.task_results import TaskResult, paired, unpaired

if TYPE_CHECKING:
    from smollm3_finetune.data.chat_template.renderer import Renderer
    from smollm3_finetune.model.load import LoadedModel

BATCH_SIZE = 8


def task_references(texts: Iterable[str]) -> list[str]:
    """The references in the values of `--tasks`, which separate them by commas; each once, in their order.

    Raises ConfigError if one is empty.
    """
    found = [reference.strip() for text in texts for reference in text.split(",")]
    if not found or not all(found):
        raise ConfigError(
            "--tasks: expected names or files separated by commas", hint="--tasks arc_easy,./my_task.yaml"
        )
    return list(dict.fromkeys(found))


def select_evaluator(
    registry: Registry, tasks: Sequence[str], config: ComponentConfig, origins: Mapping[str, str] | None = None
) -> SelectedComponent:
    """The named evaluator, or the one that claims the tasks. Raises ConfigError if several do, or none."""
    if config.name is not None:
        return choose(registry, EVALUATOR, config.name, config, origins)
    claimed: dict[str, tuple[str, RegisteredComponent]] = {}
    for task in tasks:
        best = registry.claiming(EVALUATOR, task, f"the task {task!r}")
        if not best:
            raise ConfigError(f"no installed evaluator recognizes the task {task!r}", hint=_hint(registry))
        if len(best) > 1:
            names = " or ".join(f"--evaluator {o.full_name}" for o in best)
            raise ConfigError(f"several evaluators recognize the task {task!r}", hint=names)
        claimed.setdefault(best[0].full_name, (task, best[0]))
    chosen = list(claimed.values())
    if len(chosen) > 1:
        (one, first), (other, second) = chosen[:2]
        raise ConfigError(
            f"the task {one!r} is for evaluator {first.spec.name!r}, and {other!r} for evaluator {second.spec.name!r}",
            hint=f"evaluate them separately: --tasks {one}",
        )
    return with_options(chosen[0][1], config, origins)


def _hint(registry: Registry) -> str:
    installed = [o.spec.name for o in registry.of(EVALUATOR)]
    missing = {name: where for name, where in known_components()["evaluator"].items() if name not in installed}
    hints = [f"--evaluator {name}" for name in installed]
    return " or ".join([*hints, *(f"pip install {where}" for where in dict.fromkeys(missing.values()))])


@dataclass(frozen=True, kw_only=True)
class PlannedTasks:
    """Tasks that an evaluator has opened, to be measured with each model."""

    evaluator: SelectedComponent
    opened: OpenedTasks
    batch_size: int
    seed: int


def open_tasks(
    evaluator: SelectedComponent,
    tasks: Sequence[str],
    *,
    device: str = "cpu",
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    progress: Progress,
) -> PlannedTasks:
    """Open tasks before weights are read. `limit` is the number of documents of each task, `seed` that of the interval
    and of the evaluator's random choices.

    Raises MissingRequirementError if the evaluator's packages are missing, and what `Evaluator.open` raises.
    """
    component = evaluator.component
    raise_all(requirement_problems(component.title, component.spec.requires, device))
    context = EvaluationContext(limit=limit, batch_size=batch_size, seed=seed, progress=progress)
    made = evaluator.create()
    with attributed_to(component, "open()"), seeded_everywhere(seed):
        opened = made.open(list(tasks), context)
        component.check_methods(opened, ("evaluate",), "open()")
    return PlannedTasks(evaluator=evaluator, opened=opened, batch_size=batch_size, seed=seed)


def measure_tasks(
    loaded: LoadedModel,
    planned: PlannedTasks,
    *,
    renderer: Renderer | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[DocumentScore]:
    """The scores of a model on opened tasks; its modes and all random states are restored.

    `renderer` renders prompts as in training; None: with the tokenizer's template and the current date.
    `template_kwargs` are those of a prompt, such as `{"enable_thinking": False}`. Raises PluginError for scores that
    are not finite numbers, or of one document twice.
    """
    import torch

    from smollm3_finetune.api import evaluating
    from smollm3_finetune.inference.precision import autocast

    component, context = planned.evaluator.component, loaded.plan.context
    subject = evaluated_model(loaded, renderer, template_kwargs or {})
    with (
        evaluating(loaded.model),
        torch.no_grad(),
        autocast(context.device, context.dtype),
        seeded_everywhere(planned.seed, context.device),
        attributed_to(component, "evaluate()"),
    ):
        scores = list(planned.opened.evaluate(subject))
    check_scores(component, scores)
    return scores


def evaluated_model(
    loaded: LoadedModel, renderer: Renderer | None, template_kwargs: Mapping[str, Any]
) -> EvaluatedModel:
    """A composed model in the form that evaluators get."""
    from smollm3_finetune.data.chat_template.renderer import Renderer as RendererClass
    from smollm3_finetune.data.chat_template.renderer import RenderOptions
    from smollm3_finetune.inference.generate import answer
    from smollm3_finetune.model_files.context_length import context_of
    from smollm3_finetune.model_files.stops import as_ids, joined

    config, context = loaded.plan.source.config, loaded.plan.context
    renders = renderer or RendererClass(loaded.tokenizer, RenderOptions(date=None), embeddings=loaded.plan.embeddings)
    kwargs = {key: value for key, value in template_kwargs.items() if value is not None}
    own = as_ids(getattr(loaded.base.model.generation_config, "eos_token_id", None))

    def answers(conversations: Sequence[Sequence[Mapping[str, Any]]], max_new_tokens: int) -> list[str]:
        found = []
        for messages in conversations:
            found.append(
                answer(loaded.model, renders.tokenizer, messages, max_new_tokens=max_new_tokens,
                       template_kwargs=kwargs, renderer=renders)
            )  # fmt: skip
        return found

    return EvaluatedModel(
        model=loaded.model,
        tokenizer=copy.deepcopy(renders.tokenizer),
        prompt=lambda messages: renders.prompt(messages, **kwargs),
        template_kwargs=kwargs,
        device=context.device,
        dtype=context.dtype,
        max_length=context_of(config),
        stop_ids=tuple(joined(own, renders.end_of_turn_ids())),
        answers=answers,
    )


def check_scores(component: RegisteredComponent, scores: Sequence[Any]) -> None:
    """Raises PluginError if an evaluator returned no scores, or scores that cannot be compared."""
    seen = set[tuple[str, str, str]]()
    for score in scores:
        if not isinstance(score, DocumentScore):
            raise PluginError(
                f"{component.who}: evaluate() returned an object of type {type(score).__name__}, not a DocumentScore",
                hint="yield a DocumentScore for each document and metric",
            )
        where = f"{component.who}: {score.metric} of document {score.document} of {score.task}"
        if not math.isfinite(score.value) or not isinstance(score.terms, int) or score.terms < 0:
            raise PluginError(
                f"{where} is {score.value} with {score.terms!r} terms; expected a finite value and 0 or more terms",
                hint="leave out metrics that a document does not have",
            )
        if (fault := _json_fault(score)) is not None:
            raise PluginError(
                f"{where} cannot be written as JSON: {fault}",
                hint="use text, finite numbers of Python, true, false, None, and lists and dictionaries of them",
            )
        key = (score.task, score.metric, score.document)
        if key in seen:
            raise PluginError(f"{where} was returned twice", hint="give each document of a task a unique identifier")
        seen.add(key)
    if not scores:
        raise PluginError(f"{component.who}: evaluate() returned no scores", hint="return one for each document")


def _json_fault(score: DocumentScore) -> str | None:
    """Why a score or its answer cannot be part of a report; None if it can."""
    try:
        json.dumps(vars(score), allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as e:
        return first_line(e) or type(e).__name__
    return None


def compare_tasks(
    planned: PlannedTasks, before: Sequence[DocumentScore] | None, after: Sequence[DocumentScore]
) -> list[TaskResult]:
    """The results of a model, compared with those of another on the same documents, by task and metric.

    Raises PluginError if the evaluator returned other documents for the other model.
    """
    if before is None:
        return unpaired(after)
    return paired(planned.evaluator.component.who, before, after, seed=planned.seed)


def run_tasks(
    composed: LoadedModel,
    evaluator: SelectedComponent,
    tasks: Sequence[str],
    *,
    base: LoadedModel | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    renderer: Renderer | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[TaskResult]:
    """The results of a composed model on tasks, by task and metric.

    It is compared with `base`, else with the same model without its adapter, which must be one that can be disabled.
    Without an adapter, it is only measured.
    """
    context = composed.plan.context
    planned = open_tasks(
        *(evaluator, tasks),
        device=context.device,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        progress=context.progress,
    )

    def measured(model: LoadedModel) -> list[DocumentScore]:
        return measure_tasks(model, planned, renderer=renderer, template_kwargs=template_kwargs)

    before: list[DocumentScore] | None = None
    if base is not None:
        before = measured(base)
    elif composed.adapted is not None:
        with composed.disabled():
            before = measured(composed)
    return compare_tasks(planned, before, measured(composed))
