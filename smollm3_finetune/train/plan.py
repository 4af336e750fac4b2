"""Checks and plans a training run before weights are read and before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune import stopping
from smollm3_finetune.api import BuildContext, Purpose
from smollm3_finetune.batching.strategy import check_batches
from smollm3_finetune.components.kinds import (
    ADAPTER,
    FORMATTER,
    LAUNCHER,
    LOADER,
    OBJECTIVE,
    OPTIMIZER,
    QUANTIZER,
    TRACKER,
    Kind,
)
from smollm3_finetune.components.negotiation import environment, refined
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent, reasons
from smollm3_finetune.components.suggestions import with_suggestions
from smollm3_finetune.config.load import SHIP_AS, LoadedConfig, plain, set_options, ship_config
from smollm3_finetune.config.schema import DEFAULT_ADAPTER, RunConfig
from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.data.plan import select_rows
from smollm3_finetune.data.rows import FormattedSource, Rows, Survey
from smollm3_finetune.data.turn_survey import SourceTurns, survey_turns
from smollm3_finetune.errors import Collector, ConfigError, SmolLM3Error
from smollm3_finetune.model.device import repeatable
from smollm3_finetune.model.new_tokens import declared_tokens
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, plan_model, plan_tokenizer, select_model
from smollm3_finetune.model.start_from import StartFrom, continued_tokenizer
from smollm3_finetune.model_files.context_length import context_of, yarn_problem
from smollm3_finetune.model_files.dropout import stated_dropout
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.paths import user_path
from smollm3_finetune.reference.plan import ReferencePlan, check_values, plan_reference
from smollm3_finetune.runs.base import own_source
from smollm3_finetune.runs.resume import identity
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.start_from import Started, earlier_of
from smollm3_finetune.train.arguments import check_optimizer
from smollm3_finetune.train.compiling import check_compiler
from smollm3_finetune.train.distributed.layout import Layout
from smollm3_finetune.train.early import check_options
from smollm3_finetune.train.launcher import check_launcher_options, is_own_process, planned_layout, select_launcher
from smollm3_finetune.train.optimizer import check_optimizer_fits, select_optimizer
from smollm3_finetune.train.own_base import OwnBase, plan_own_base
from smollm3_finetune.train.sharding import FSDP, ShardingPlan, plan_sharding
from smollm3_finetune.train.shipping import check_shipping
from smollm3_finetune.train.starting import adapter_to_train, plan_started, with_kept_calibration
from smollm3_finetune.train.tracker import check_tracker, select_tracker
from smollm3_finetune.train.trackers import check_trackers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A checked run, ready to be executed."""

    config: RunConfig
    """The configuration, with every name resolved to `distribution:name` and every option set."""
    origins: Mapping[str, str]
    model: ModelPlan
    objective: SelectedComponent
    reference: ReferencePlan
    rows: Rows
    survey: Survey
    render: RenderOptions
    calibration: Rows | None
    """Separate calibration rows; None: the training rows."""
    asked: str
    """The identity of the configuration as the user gave it."""
    launcher: SelectedComponent
    """What starts, or has started, the processes of the run."""
    layout: Layout
    """The processes of the run, which may not have been started yet."""
    optimizer: SelectedComponent | None = None
    """The optimizer of a plugin; None: `train.optimizer`."""
    tracker: SelectedComponent | None = None
    """What receives the metrics, beside the trackers of `train.report_to`."""
    sharding: ShardingPlan | None = None
    """What the processes share; None if each of them has all weights."""
    part_of: Mapping[str, str] | None = None
    """The `pipeline` and the `stage`, or the `sweep` and the `trial`, that this run is, if it is one."""
    kept_calibration: Sequence[Sequence[int]] | None = None
    """The calibration rows of the run that it starts from, if the base was quantized with them."""
    own_base: OwnBase | None = None
    """The base that the run makes in its directory before it trains."""

    @property
    def start_from(self) -> StartFrom | None:
        """The existing adapter that the run trains further; None if it began with a new adapter."""
        return self.model.start_from

    @property
    def earlier(self) -> StartFrom | None:
        """The adapter that the run started from, trained further or merged into the base; None if there is none."""
        return self.model.earlier

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, a new object each time; with the chat template of the adapter that the run began with.

        If that adapter has another vocabulary than its base, its own tokenizer.
        """
        own = self.model.tokenizer()
        if self.start_from is None or self.model.saved is None:
            return own
        return continued_tokenizer(own, plan_tokenizer(self.model))

    def base_dropout(self) -> dict[str, float]:
        """The dropout of the base that is active in training, by name; empty if there is none."""
        return {} if self.config.train.base_dropout == "off" else stated_dropout(self.model.source.config)

    def batch_term(self) -> str | None:
        """The part of the loss that depends on which rows share a batch; None if each row has a loss of its own."""
        if self.model.source.config.get("output_router_logits"):
            return "the loss of the routers"
        term: str | None = refined(self.objective, self.model.env).batch_term
        return term

    def turns(self) -> list[SourceTurns]:
        """The answers and tool calls of the first rows; empty if they cannot be rendered, which a run reports."""
        quiet_transformers()
        try:
            return survey_turns(self.rows, Renderer(self.tokenizer(), self.render))
        except SmolLM3Error:
            return []

    def components(self) -> list[SelectedComponent]:
        """Every component of the run."""
        formatters = [s.formatter for s in self.rows.sources]
        model = (self.model.loader, self.model.quantizer, self.model.adapter)
        selected = (*model, self.objective, *formatters, self.launcher, self.optimizer, self.tracker)
        return [c for c in selected if c is not None]


def plan_run(
    registry: Registry,
    loaded: LoadedConfig,
    make_context: Callable[[], BuildContext],
    checkpoint: Path | None = None,
    *,
    start: Started | None = None,
    run: RunDir | None = None,
    launches: bool = True,
) -> RunPlan:
    """Check a run in one direction: names and options; packages, pairing, device; the model's config; then the rows.

    `make_context` is called after all names are resolved, because it imports torch to inspect the device. Raises the
    independent problems of each step together, and DataError for problems with the rows.

    A new run with `from` has `start`, and `loaded` is its configuration. `run` is the directory of the run, if it is
    known; a resumed run has its base there, if it has one of its own, and states what it started from. `launches`:
    whether the launcher is still to start the processes of the run; otherwise this process is one of them.
    """
    asked = identity(loaded.config if start is None else start.stated.config)
    config = loaded.config
    further = start is not None and not start.earlier.fresh
    ref, loader, adapter = config.model, config.loader, config.adapter
    if start is not None:
        ref, loader = start.source()
        adapter = adapter_to_train(registry, start)
    elif checkpoint is not None and run is not None:
        ref, loader = own_source(run, ref, loader)
    if adapter.name is None and not further:
        adapter = replace(adapter, name=DEFAULT_ADAPTER)
    request = ModelRequest(
        ref=ref,
        loader=loader,
        quant=config.quant,
        adapter=adapter,
        adapter_path=start.saved.path if start is not None and further else checkpoint,
        purpose=Purpose.TRAIN,
        ship_as=ship_config(config),
        compared=not further,  # those of a resumed run are compared with the versions of the run, by the caller
        origins=loaded.origins,
    )
    collect = Collector()
    declared = collect.run(lambda: declared_tokens(config.data.add_tokens, config.data.add_tokens_file))
    request = replace(request, add_tokens=declared or ())
    about_rows = collect.run(lambda: select_rows(registry, loaded))
    about_model = collect.run(lambda: select_model(registry, request))
    launcher = collect.run(lambda: select_launcher(registry, loaded))
    optimizer = collect.run(lambda: select_optimizer(registry, loaded))
    tracker = collect.run(lambda: select_tracker(registry, loaded))
    layout = None if launcher is None else collect.run(lambda: planned_layout(launcher, launches=launches))
    collect.finish()
    assert about_rows is not None and about_model is not None and launcher is not None and layout is not None
    context = make_context()
    env = environment(context.device, Purpose.TRAIN)
    if launches:
        check_launcher_options(launcher, env)
    if tracker is not None and (launches or is_own_process(launcher)):  # a launched process has nobody to fix it
        check_tracker(tracker, env)
    own_base = kept = None
    if start is not None:
        own_base = plan_own_base(registry, start, context)
        if own_base is not None and run is not None:
            own_base.check_room(run)
        model = plan_started(registry, start, about_model, context, own_base)
        model, kept = with_kept_calibration(start, model)
    else:
        earlier = None if checkpoint is None or run is None else earlier_of(run, config.start_from)
        model = replace(plan_model(registry, about_model, context), earlier=earlier)
    assert model.adapter is not None
    continues = model.start_from is not None
    reference = plan_reference(
        *(registry, about_rows.objective, model, config.train),
        continues=continues,
        shares=layout.sharding == FSDP,
    )
    rows, calibration = about_rows.rows(registry), about_rows.calibration_rows(registry)
    objective = about_rows.objective
    chosen_last = [objective] if optimizer is None else [objective, optimizer]
    components = [*(s.formatter for s in rows.sources), model.loader, model.quantizer, model.adapter, *chosen_last]
    settled = with_suggestions(loaded, components)
    if checkpoint is None:  # a resumed run keeps its data.max_length
        check_length(settled, model)
    check_batches(settled.config.train, model.adapter, model.env)
    check_compiler(settled.config.train, context.device)
    check_optimizer(settled.config.train)
    check_optimizer_fits(registry, optimizer, model, layout)
    check_trackers(settled.config.train)
    check_options(settled.config.train, settled.config.data)
    if (limit := settled.config.train.max_time) is not None:
        stopping.seconds(limit)
    sharding = plan_sharding(layout, model, settled.config.train, optimizer)
    check_shipping(model, settled.config.train, layout.sharding, resumed=checkpoint is not None)
    check_values(reference, objective, settled.config.train)
    chosen = {LOADER: model.loader, QUANTIZER: model.quantizer, ADAPTER: model.adapter, OBJECTIVE: objective}
    chosen[LAUNCHER] = launcher
    if optimizer is not None:
        chosen[OPTIMIZER] = optimizer
    if tracker is not None:
        chosen[TRACKER] = tracker
    resolved = _resolved(settled.config, model, chosen, rows, calibration, request.add_tokens)
    return RunPlan(
        config=resolved if start is None else replace(resolved, start_from=start.reference),
        origins={**settled.origins, **{f"{section}.name": why for section, why in reasons(components).items()}},
        model=model,
        objective=objective,
        reference=reference,
        rows=rows,
        survey=rows.survey(context.progress),
        render=about_rows.render,
        calibration=calibration,
        asked=asked,
        launcher=launcher,
        tracker=tracker,
        layout=layout,
        optimizer=optimizer,
        sharding=sharding,
        kept_calibration=kept,
        own_base=own_base,
    )


def check_length(loaded: LoadedConfig, model: ModelPlan) -> None:
    """Raises ConfigError if `data.max_length` exceeds the model's context length."""
    wanted, room = loaded.config.data.max_length, context_of(model.source.config)
    if room is None or wanted <= room:
        return
    stretch = hasattr(model.loader.options, "context") and yarn_problem(model.source.config, model.ref) is None
    default = "" if "data.max_length" in loaded.origins else " (the default)"
    raise ConfigError(
        f"data.max_length={wanted}{default} is more than the {room} tokens that {model.ref!r} supports",
        hint=f"--loader-opt context={wanted} (YaRN), or --max-length {room}" if stretch else f"--max-length {room}",
    )


def _resolved(
    config: RunConfig,
    model: ModelPlan,
    components: Mapping[Kind, SelectedComponent],
    rows: Rows,
    calibration_from: Rows | None,
    declared: Sequence[str],
) -> RunConfig:
    """The configuration with full names and all options in every component section, so that the run can be repeated."""
    chosen = dict(components)
    if len({s.formatter.component.full_name for s in rows.sources}) == 1:  # otherwise the configured one stays
        chosen[FORMATTER] = rows.sources[0].formatter
    template = config.data.template
    data = replace(
        config.data,
        path=_resolved_path(config.data.path, [s for s in rows.sources if not s.source.validation]),
        validation=_resolved_path(config.data.validation, [s for s in rows.sources if s.source.validation]),
        held_out=rows.fraction,
        template=str(user_path(template).resolve()) if template is not None else None,
        add_tokens=tuple(declared),
        add_tokens_file=None,
    )
    calibration = config.calibration
    if calibration_from is not None:
        calibration = replace(calibration, path=_resolved_path(calibration.path, calibration_from.sources))
    changes: dict[str, Any] = {
        **{kind.section: choice.as_config() for kind, choice in chosen.items()},
        LOADER.section: model.pinned_loader(),
        "model": _resolved_model(config.model, model),
        "data": data,
        "calibration": calibration,
        "device": repeatable(model.context.device),
        "dtype": model.context.dtype,
    }
    if model.ship is not None:
        ship = model.ship.config()
        changes["train"] = replace(config.train, ship_as={"name": ship.name, **plain(ship.options)})
        changes["given"] = tuple(f"{'.'.join(SHIP_AS)}.{name}" for name in ship.set_options())
    resolved = replace(config, **changes)
    return replace(resolved, given=set_options(resolved))


def _resolved_model(ref: str, model: ModelPlan) -> str:
    """The model's reference, as an absolute path if it is a path and its loader accepts absolute paths."""
    path, claims = user_path(ref).absolute(), getattr(model.loader.component.spec, "claims", None)
    return str(path) if claims is not None and path.exists() and claims(str(path)) else ref


def _resolved_path(path: Any, sources: Sequence[FormattedSource]) -> Any:
    """`data.path` with absolute paths and Hub commits; with several sources, each one gets its formatter."""
    if path is None:
        return None
    is_single = isinstance(path, str | Mapping)
    resolved: list[str | dict[str, Any]] = []
    for entry, found in zip([path] if is_single else path, sources, strict=True):
        about = {"path": entry} if isinstance(entry, str) else dict(entry)
        if found.source.hub is None:
            about["path"] = str(user_path(about["path"]).absolute())
        else:
            about["revision"] = found.source.config.revision
        if not is_single and len(sources) > 1:
            about["formatter"] = found.formatter.component.full_name
        resolved.append(about if len(about) > 1 or not is_single else about["path"])
    return resolved[0] if is_single else tuple(resolved)
