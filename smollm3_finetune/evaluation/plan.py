"""Plans an evaluation: names, options, models and rows are checked before any weights are read."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from smollm3_finetune.api import Objective, Progress, Purpose
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.data.calibration import PlannedRows, plan_rows
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.plan import SelectedRows, render_options, select_rows
from smollm3_finetune.data.tokenization import rows_fingerprint
from smollm3_finetune.data.vocabulary import with_usable_padding
from smollm3_finetune.errors import Collector, ConfigError, DataError, IncompatibleError
from smollm3_finetune.evaluation.overlap import Overlap, OverlapIndex
from smollm3_finetune.evaluation.reference import WITHOUT, plan_values
from smollm3_finetune.evaluation.rows import (
    NO_ROWS,
    Example,
    HeldOutRows,
    all_rows,
    check_same_tokens,
    examples_of,
    held_out_of_run,
    trained_rows,
)
from smollm3_finetune.evaluation.sanity import Prompts, prompts_of
from smollm3_finetune.evaluation.subject import Subject, rows_configuration
from smollm3_finetune.evaluation.tasks import PlannedTasks, open_tasks
from smollm3_finetune.model.load import build_context
from smollm3_finetune.model.plan import ModelPlan, SelectedModel, plan_model, plan_tokenizer, select_model
from smollm3_finetune.model.trained_context import check_trained_context
from smollm3_finetune.model_files.context_length import context_of
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.paths import user_path
from smollm3_finetune.reference.plan import ReferencePlan
from smollm3_finetune.reference.stored import Stored
from smollm3_finetune.runs.reopen import trained_mode
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.versions import saved_versions

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What is measured."""

    rows: LoadedConfig | None = None
    """The configuration of separate rows, all of them held out; None: the held-out rows of the run.

    A model that is not a run has none: it is measured on tasks only."""
    limit: int | None = None
    """The largest number of rows to measure."""
    seed: int = 0
    """Seed of the sample of `limit`, the prompts, the null adapter and the interval."""
    batch_size: int | None = None
    answers: int = 16
    """The number of prompts to answer; 0: none."""
    max_new_tokens: int = 128
    null_adapter: bool = True
    overlap: Literal["near", "exact", "keep"] = "near"
    """Which held-out rows are left out of the comparison: near duplicates and copies of training rows, copies, none."""
    tasks: Sequence[str] = ()
    """Names or files of tasks to measure too."""
    evaluator: SelectedComponent | None = None
    """The evaluator of the tasks."""


@dataclass(frozen=True, kw_only=True)
class PlannedSubject:
    """A model to evaluate, ready to be loaded."""

    title: str
    plan: ModelPlan
    renderer: Renderer
    examples: Sequence[Sequence[Example]]
    """Of each row."""
    check_base: bool
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template for prompts of tasks: the reasoning mode."""

    def has_base(self) -> bool:
        """Whether there is a base to compare with."""
        return self.plan.adapter is not None

    def disables(self) -> bool:
        """Whether its adapter can be disabled; otherwise the base is loaded separately."""
        return self.plan.adapter is not None and bool(refined(self.plan.adapter, self.plan.env).disables)


@dataclass(frozen=True, kw_only=True)
class PlannedEvaluation:
    """An evaluation whose every input was checked; no weights were read."""

    subject: PlannedSubject
    against: PlannedSubject | None
    settings: EvalSettings
    train: TrainConfig
    """Settings of the batches."""
    objective: SelectedComponent
    rows: HeldOutRows
    overlap: Overlap
    empty: int
    """Rows without supervised tokens, which are not among `rows`."""
    prompts: Prompts
    warnings: Sequence[str] = field(default_factory=tuple)
    tasks: PlannedTasks | None = None
    """Opened tasks, which are measured with each model."""
    reference: ReferencePlan = ReferencePlan()
    """The reference of the evaluated run."""
    run: RunDir | None = None
    """The evaluated run, if it is one."""
    values: Stored | None = None
    """The values of the reference for each example, when they are computed."""

    def compares(self) -> bool:
        """Whether there is something to compare the model with."""
        return self.against is not None or self.subject.has_base()

    def make_objective(self) -> Objective:
        made: Objective = self.objective.create()
        return made


def plan_evaluation(
    registry: Registry, subject: Subject, settings: EvalSettings, progress: Progress, against: Subject | None = None
) -> PlannedEvaluation:
    """Check everything that can be checked before weights are read.

    Raises the independent problems of names and options together, then those of the models, then those of the rows.
    """
    subjects = [subject] if against is None else [subject, against]
    collect = Collector()
    models = [collect.run(lambda s=s: select_model(registry, s.request)) for s in subjects]  # type: ignore[misc]
    separate, warnings = settings.rows, list[str]()
    only_tasks = separate is None and subject.loaded is None and settings.evaluator is not None
    if only_tasks:  # the values of a configuration that names no rows
        separate, settings = rows_configuration([]), replace(settings, null_adapter=False)
    own = [
        None
        if only_tasks
        else collect.run(lambda s=s: _rows_of_run(registry, s, warnings, needed=s is subject and separate is None))  # type: ignore[misc]
        for s in subjects
    ]
    selected = own[0] if separate is None else collect.run(lambda: select_rows(registry, separate))
    if separate is None and subject.loaded is None:
        collect.problems.append(_no_rows(subject))
    collect.finish()
    assert selected is not None
    quiet_transformers()
    plans = [_planned_model(registry, s, m, progress) for s, m in zip(subjects, models, strict=True) if m is not None]
    reference = plan_values(registry, selected.objective, selected.config.train, subjects, plans)
    renderers = [_renderer(s, p, selected) for s, p in zip(subjects, plans, strict=True)]
    trained = []
    for i, (one, of_run) in enumerate(zip(subjects, own, strict=True)):
        if of_run is not None and one.loaded is not None:
            read = _read(registry, one, of_run, progress, warnings, needed=i == 0 and separate is None)
            trained += [] if read is None else [read]
            if i == 0 and read is not None and _changed(one, one.loaded, read, plans[0]):
                warnings.append(
                    f"the rows of {one.title}, or their rendering, have changed since it was trained: it may have been "
                    "trained on some of its held-out rows"
                )
    found = NO_ROWS
    if not only_tasks:
        found = held_out_of_run(trained[0]) if separate is None else all_rows(selected.rows(registry), progress)
    if not found.rows and not only_tasks:
        raise _none_held_out(subject, separate is not None)
    sampled = found.sampled(settings.limit, settings.seed)
    data = selected.config.data
    examples = [
        examples_of(sampled, selected.objective, r, data.max_length, chunk=data.long_text == "chunk") for r in renderers
    ]
    kept = [i for i, made in enumerate(examples[0]) if made]
    if not kept and not only_tasks:
        raise DataError(
            "no held-out row has supervised tokens", hint="to see why: smollm3 data preview --data FILE.jsonl"
        )
    rows = sampled.only(kept)
    examples = [[made[i] for i in kept] for made in examples]
    if against is not None and not check_same_tokens(rows, examples[0], examples[1], against.title):
        if reference.kind != "none":
            raise IncompatibleError(
                f"{subject.title} and {against.title} have different chat templates, so the reference of "
                f"{subject.title} has no values for the prompts of {against.title}",
                hint=WITHOUT,
            )
        warnings.append(f"{subject.title} and {against.title} have different chat templates, so their prompts differ")
    overlap = _overlap(rows, trained, settings)
    if rows.rows and len(overlap.rows()) == len(rows.rows):
        raise DataError(
            f"all {len(rows.rows):,} held-out rows are also training rows, so they say nothing about new rows",
            hint="use other rows, with --data FILE.jsonl; to measure these anyway: --overlap keep",
        )
    config = selected.config.train
    train = replace(config, packing=False, padding="always", batch_size=settings.batch_size or config.batch_size)
    tasks = None
    if settings.evaluator is not None:
        tasks = open_tasks(
            settings.evaluator,
            settings.tasks,
            device=plans[0].context.device,
            limit=settings.limit,
            batch_size=train.batch_size,
            seed=settings.seed,
            progress=progress,
        )
    rooms = [r for r in (context_of(p.source.config) for p in plans) if r is not None]
    return PlannedEvaluation(
        subject=_ready(subject, plans[0], renderers[0], examples[0], settings),
        against=None if against is None else _ready(against, plans[1], renderers[1], examples[1], settings),
        settings=settings,
        train=train,
        objective=selected.objective,
        rows=rows,
        overlap=overlap,
        empty=len(sampled.rows) - len(rows.rows),
        prompts=prompts_of(
            rows, renderers[0], settings.answers, settings.max_new_tokens, min(rooms, default=None), settings.seed
        ),
        warnings=warnings,
        tasks=tasks,
        reference=reference,
        run=subject.run,
    )


def _ready(
    subject: Subject, plan: ModelPlan, renderer: Renderer, examples: Any, settings: EvalSettings
) -> PlannedSubject:
    mode = renderer.options.enable_thinking
    if subject.run is not None and settings.evaluator is not None:
        mode = trained_mode(subject.run, mode, "restore the file, or evaluate without --tasks")
    return PlannedSubject(
        title=subject.title,
        plan=plan,
        renderer=renderer,
        examples=examples,
        check_base=subject.check_base,
        template_kwargs={"enable_thinking": mode},
    )


def _rows_of_run(registry: Registry, subject: Subject, warnings: list[str], *, needed: bool) -> SelectedRows | None:
    """The rows that a run selects; None if it is not a run, or if they are gone and not `needed`."""
    if subject.loaded is None:
        return None
    config = subject.loaded.config
    without = replace(config, calibration=replace(config.calibration, path=None))  # these rows are not needed
    selected = replace(subject.loaded, config=without)
    return _readable(lambda: select_rows(registry, selected), subject, warnings, needed=needed)


def _read(
    registry: Registry,
    subject: Subject,
    selected: SelectedRows,
    progress: Progress,
    warnings: list[str],
    *,
    needed: bool,
) -> PlannedRows | None:
    """The rows of a run and their split."""
    loaded = subject.loaded
    assert loaded is not None
    return _readable(lambda: plan_rows(registry, selected, loaded, progress), subject, warnings, needed=needed)


def _readable(read: Callable[[], T], subject: Subject, warnings: list[str], *, needed: bool) -> T | None:
    """The rows of a run; None, with a warning, if they cannot be read and are not `needed`."""
    try:
        return read()
    except DataError as e:
        if needed:
            raise DataError(e.message, hint="to use other rows: --data FILE.jsonl") from e
        warnings.append(
            f"the training rows of {subject.title} cannot be read ({e.message}): rows that it was trained on are not "
            "left out"
        )
        return None


def _no_rows(subject: Subject) -> ConfigError:
    path = subject.request.adapter_path
    run = RunDir(path).containing() if path is not None else RunDir(user_path(subject.title)).containing()
    return ConfigError(
        f"{subject.title!r} is not a run, so it has no held-out rows",
        hint="--data FILE.jsonl" if run is None else f"smollm3 eval {shlex.quote(str(run))}, or --data FILE.jsonl",
    )


def _none_held_out(subject: Subject, separate: bool) -> DataError:
    if separate:
        return DataError("--data contains no rows to evaluate on", hint="--data FILE.jsonl")
    return DataError(f"the run {subject.title} holds out no rows", hint="to use other rows: --data FILE.jsonl")


def _planned_model(registry: Registry, subject: Subject, selected: SelectedModel, progress: Progress) -> ModelPlan:
    seed = subject.loaded.config.seed if subject.loaded is not None else 0
    context = build_context(Purpose.INFER, subject.device, subject.dtype, seed, progress=progress)
    plan = plan_model(registry, selected, context)
    if subject.check_base:
        check_trained_context(plan)
    return plan


def _renderer(subject: Subject, plan: ModelPlan, selected: SelectedRows) -> Renderer:
    """The renderer of a model: a run's as in training; else the tokenizer's template, with the options of the rows."""
    own = selected.render
    if subject.loaded is not None:
        template = render_options(subject.loaded.config.data).template
        tokenizer, options = plan.tokenizer(), replace(own, template=template)
    else:
        tokenizer, options = plan_tokenizer(plan), own
    embeddings = plan.embeddings
    usable = with_usable_padding(tokenizer, embeddings, plan.context.progress.say)
    return Renderer(usable, options, embeddings=embeddings)


def _changed(subject: Subject, loaded: LoadedConfig, planned: PlannedRows, plan: ModelPlan) -> bool:
    """Whether a run was trained on other rows than its configuration names now, or rendered them differently."""
    assert subject.run is not None
    data, known = loaded.config.data, saved_versions(subject.run).get("rows")
    embeddings = plan.embeddings
    tokenizer = with_usable_padding(plan.tokenizer(), embeddings, lambda line: None)
    renderer = Renderer(tokenizer, planned.render, embeddings=embeddings)
    now = rows_fingerprint(
        *(planned.rows, planned.survey, planned.objective, renderer, data.max_length), chunk=data.long_text == "chunk"
    )
    return known is not None and known != now


def _overlap(rows: HeldOutRows, trained: Sequence[PlannedRows], settings: EvalSettings) -> Overlap:
    if settings.overlap == "keep" or not trained:
        return Overlap()
    index = OverlapIndex(rows.conversations())
    found = Overlap()
    for planned in trained:
        found = found.joined(index.compare(trained_rows(planned)))
    return found if settings.overlap == "near" else Overlap(exact=found.exact)
