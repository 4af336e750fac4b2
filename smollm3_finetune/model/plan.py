"""Plans a model: its loader, quantizer and adapter with their options, checked before any weights are read.

`select_model` checks names and options only. `plan_model` then checks packages, the pair and the device, and opens
the source. Each reports independent problems together.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, Env, ModelSource, Purpose
from smollm3_finetune.components.contract import described, leave_out
from smollm3_finetune.components.discovery import CORE_DISTRIBUTION
from smollm3_finetune.components.kinds import ADAPTER, LOADER, QUANTIZER
from smollm3_finetune.components.loadable import loadable_file
from smollm3_finetune.components.negotiation import environment, pair_problem
from smollm3_finetune.components.recorded import compare_recorded
from smollm3_finetune.components.registry import Claim, RegisteredComponent, Registry, attributed_to, explain_choice
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent, choose, with_options
from smollm3_finetune.config.load import same_component
from smollm3_finetune.config.schema import DEFAULT_ADAPTER, DEFAULT_MODEL, ComponentConfig
from smollm3_finetune.errors import (
    Collector,
    ConfigError,
    IncompatibleError,
    ModelError,
    SmolLM3Error,
    did_you_mean,
)
from smollm3_finetune.files.json import json_type, read_json
from smollm3_finetune.model.new_tokens import NewToken, add_to, rows_of, without_new
from smollm3_finetune.model.plan_new_tokens import planned_tokens
from smollm3_finetune.model.saved_adapter import SavedAdapter, read_calibration
from smollm3_finetune.model.start_from import StartFrom
from smollm3_finetune.model_files.loading import load_tokenizer
from smollm3_finetune.model_files.vocabulary import embeddings_of
from smollm3_finetune.paths import user_path
from smollm3_finetune.shipping.record import Record
from smollm3_finetune.shipping.target import (
    KEY,
    ShipPlan,
    adapter_problem,
    base_problem,
    check_source,
    format_problems,
    recorded_format,
    same_format,
    select_format,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_QUANTIZER = "none"
OWN_NO_QUANTIZER = f"{CORE_DISTRIBUTION}:{NO_QUANTIZER}"
"""The quantizer of a run that names none; the full name excludes a plugin that offers the same name."""


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """The user's request, before names are looked up."""

    ref: str
    loader: ComponentConfig = ComponentConfig()
    quant: ComponentConfig = ComponentConfig()
    adapter: ComponentConfig | None = None
    """None: no adapter at all."""
    adapter_path: Path | None = None
    """A saved adapter to restore."""
    purpose: Purpose = Purpose.INFER
    ship_as: ComponentConfig | None = None
    """The format to train for. A saved adapter that is not trained further names its own."""
    add_tokens: Sequence[str] = ()
    """Texts that become tokens of their own, if the tokenizer lacks them."""
    compared: bool = False
    """Whether the versions that made the saved adapter were compared already, as for a resumed run."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """The origin of each key, for messages."""


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """What `load_model` will do."""

    ref: str
    source: ModelSource
    loader: SelectedComponent
    quantizer: SelectedComponent
    adapter: SelectedComponent | None
    saved: SavedAdapter | None
    context: BuildContext
    ship: ShipPlan | None = None
    """The format that the model is trained for, or was trained for; None: the model computes as usual."""
    earlier: StartFrom | None = None
    """The adapter that the run started from, trained further or merged into the base; None if there is none."""
    new_tokens: tuple[NewToken, ...] = ()
    """Tokens that the tokenizer of the source lacks, and that are added to it and to the base."""

    @property
    def start_from(self) -> StartFrom | None:
        """The existing adapter that the run trains further; None if it began with a new adapter."""
        return None if self.earlier is None or self.earlier.fresh else self.earlier

    @property
    def env(self) -> Env:
        """What `refine` of a descriptor may depend on."""
        return environment(self.context.device, self.context.purpose)

    def pinned_loader(self) -> ComponentConfig:
        """The loader with the options that open exactly these weights again."""
        pins = getattr(self.source, "pins", {})
        config = self.loader.as_config()
        return replace(config, options={**config.options, **pins})

    @property
    def embeddings(self) -> int | None:
        """The number of embeddings of the model, with those of new tokens; None if its config does not state it."""
        return rows_of(embeddings_of(self.source.config), self.new_tokens)

    @property
    def adds_rows(self) -> bool:
        """Whether new tokens need more embeddings than the source has; some models have rows beyond their tokens."""
        return self.embeddings != embeddings_of(self.source.config)

    @property
    def base_context(self) -> BuildContext:
        """The context with which the quantizer loads the base, which has no rows for new tokens yet."""
        if not self.new_tokens:
            return self.context
        return replace(self.context, calibration=without_new(self.context.calibration, self.new_tokens))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer with its new tokens, a new object each time. Raises PluginError if the loader fails."""
        with attributed_to(self.loader.component):
            own = self.source.tokenizer()
        if self.new_tokens:
            add_to(own, self.new_tokens)
        return own


def choose_loader(registry: Registry, request: ModelRequest) -> SelectedComponent:
    """The named loader, or the one that claims the reference; a tie must be decided by the user."""
    config = request.loader
    if "\0" in request.ref:
        user_path(request.ref)  # raises for the null byte
    if config.name is not None:
        return choose(registry, LOADER, config.name, config, request.origins)
    best = registry.claiming(LOADER, request.ref, f"the reference {request.ref!r}")
    if all(getattr(o.spec, "rank", 0) < 0 for o in best):  # one that claims any directory
        _check_directory(request.ref, registry)
    if len(best) > 1:
        names = " or ".join(f"--loader {o.full_name}" for o in best)
        raise ConfigError(f"several loaders can open {request.ref!r}", hint=names)
    if not best:
        raise ModelError(_why_none(request.ref), hint=_model_hint(request.ref, registry))
    return with_options(best[0], config, request.origins)


def _check_directory(ref: str, registry: Registry) -> None:
    """Raises ModelError for a directory that is not a model, but has one in a file."""
    path = user_path(ref)
    if not ref or not path.is_dir() or (path / "config.json").exists():
        return
    if (file := loadable_file(path, registry)) is not None:
        raise ModelError(
            f"the directory {ref!r} is not a model, but contains one in a file",
            hint=f"name the file: {shlex.quote(str(file))}",
        )


def open_source(loader: SelectedComponent, ref: str, context: BuildContext) -> tuple[ModelSource, Mapping[str, Any]]:
    """The source that the loader opens for `ref`, and its `config.json`. Raises PluginError if the loader fails."""
    made = loader.create()
    with attributed_to(loader.component):
        source: ModelSource = made.open(ref, context)
        if not hasattr(type(source), "config") and not hasattr(source, "config"):
            raise TypeError(f"open() returned {described(source)}, not a ModelSource")
        config = source.config
        if not isinstance(config, Mapping):
            raise TypeError(f"open() returned a source whose config is {type(config).__name__}, not a mapping")
    return source, config


def _why_none(ref: str) -> str:
    """Why no loader can open a reference, as a sentence."""
    path = user_path(ref)
    if ref and os.path.isdir(path):
        return f"the directory {ref!r} is not a model that an installed loader recognizes"
    if ref and os.path.exists(path):
        return f"the file {ref!r} is not a model that an installed loader recognizes"
    is_path = ref.startswith((".", "/", "~")) or ref.count("/") > 1
    return f"the model directory {ref!r} does not exist" if is_path else f"there is no model {ref!r}"


def _model_hint(ref: str, registry: Registry) -> str:
    from smollm3_finetune.components.registry import install_command, known_components

    extension = ref.rpartition(".")[2].lower()
    install = known_components()["loader"].get(extension)
    if install and extension not in {o.spec.name for o in registry.of(LOADER)}:
        return install_command(extension)
    path = user_path(ref)
    beside = [str(p) for p in path.parent.glob("*/")] if path.parent.is_dir() else []
    near = did_you_mean(ref, [DEFAULT_MODEL, *(d for d in beside if (Path(d) / "config.json").exists())])
    if near is not None:
        return f"did you mean {near!r}?"
    return f"use {DEFAULT_MODEL!r} (built-in), a Hub ID such as HuggingFaceTB/SmolLM3-3B, a directory or a file"


def claiming_quantizers(registry: Registry, source: ModelSource) -> list[RegisteredComponent]:
    """The quantizers that recognize a checkpoint: by its `config.json`, or else by another file."""
    about = source.config.get("quantization_config")
    if about is not None and not isinstance(about, Mapping):
        raise ModelError(f"the quantization_config of {source.ref!r} must be an object, found {json_type(about)}")
    found = registry.claiming(QUANTIZER, source.config, f"the config.json of {source.ref!r}")
    if found or "quantization_config" in source.config:
        return found
    for component in registry.of(QUANTIZER):
        marker = next((f for f in getattr(component.spec, "marker_files", ()) if source.has_file(f)), None)
        if marker is not None:
            claim = Claim(
                reason=f"{source.ref!r} contains {marker}", other=leave_out(component.plugin, component.origin)
            )
            found.append(replace(component, claim=claim))
    return found


def choose_quantizer(registry: Registry, selected: SelectedModel, source: ModelSource) -> SelectedComponent:
    """The selected quantizer, or the one that claims the checkpoint, or none.

    Raises IncompatibleError if the checkpoint is already quantized by another method than the selected one.
    """
    request, choice = selected.request, selected.quantizer
    claiming = claiming_quantizers(registry, source)
    if choice is not None:
        other = [o for o in claiming if o.full_name != choice.component.full_name]
        if claiming and len(other) == len(claiming):
            raise IncompatibleError(
                f"{request.ref!r} is already quantized by {other[0].spec.name!r}, not by --quant {request.quant.name}",
                hint=f"omit --quant, or: --quant {other[0].spec.name}" + _if_wrong(other[0]),
            )
        return choice
    if len(claiming) > 1:
        names = " or ".join(f"--quant {o.full_name}" for o in claiming)
        raise ConfigError(f"several quantizers recognize the checkpoint {request.ref!r}", hint=names)
    if claiming:
        return with_options(claiming[0], request.quant, request.origins)
    return choose(registry, QUANTIZER, OWN_NO_QUANTIZER, request.quant, request.origins)


def _if_wrong(component: RegisteredComponent) -> str:
    """What to do if a plugin's quantizer claims a checkpoint that is not its own."""
    if component.origin == "built in":
        return ""
    return f"; if its claims are wrong, {leave_out(component.plugin, component.origin)}"


def _unclaimed(
    registry: Registry, config: Mapping[str, Any], quantizer: SelectedComponent, ref: str
) -> SmolLM3Error | None:
    """The error for a quantized checkpoint that would be loaded as if it were dense, else None."""
    about = config.get("quantization_config")
    if not about or quantizer.component.spec.name != NO_QUANTIZER:
        return None
    method = about.get("quant_method")
    if method is None:
        return IncompatibleError(
            f"{ref!r} is a quantized checkpoint whose quantization_config does not name the method",
            hint="if you know the method: --quant NAME; to see the names: smollm3 plugins list",
        )
    if (broken := registry.broken_offering(str(method))) is not None:
        return broken
    return IncompatibleError(
        f"{ref!r} is a checkpoint quantized by {method!r}, and no installed plugin reads it",
        hint="to see the installed plugins: smollm3 plugins list",
    )


@dataclass(frozen=True, kw_only=True)
class SelectedModel:
    """The components that a request names, with validated options; nothing is opened yet."""

    request: ModelRequest
    """The request, completed with the description of a saved adapter."""
    saved: SavedAdapter | None
    loader: SelectedComponent
    quantizer: SelectedComponent | None
    """None: the request names none, and the checkpoint decides."""
    adapter: SelectedComponent | None
    ship: ShipPlan | None = None
    notices: Sequence[str] = ()
    """Lines about versions that differ from those of the saved adapter."""


def select_model(registry: Registry, request: ModelRequest) -> SelectedModel:
    """Look up every name and validate every option. Imports no torch and opens no model.

    Reads the description of a saved adapter. Raises every independent problem together.
    """
    collect = Collector()
    path = request.adapter_path
    saved = collect.run(lambda: SavedAdapter.read(path)) if path is not None else None
    request = _with_saved(request, saved)
    _compare_versions(registry, request, saved)  # first: another version may have other options
    loader = collect.run(lambda: choose_loader(registry, request))
    adapter = collect.run(lambda: _choose_adapter(registry, request, saved))
    quantizer: SelectedComponent | None = None
    if request.quant.name is not None:
        name = request.quant.name
        quantizer = collect.run(lambda: choose(registry, QUANTIZER, name, request.quant, request.origins))
    selected_ship = collect.run(lambda: _select_ship(registry, request, saved))
    collect.finish()
    assert loader is not None
    ship, about_ship = selected_ship or (None, [])
    notices = _compare_versions(registry, replace(request, loader=loader.as_config()), saved)
    return SelectedModel(
        request=request,
        saved=saved,
        loader=loader,
        quantizer=quantizer,
        adapter=adapter,
        ship=ship,
        notices=[*notices, *about_ship],
    )


def _select_ship(
    registry: Registry, request: ModelRequest, saved: SavedAdapter | None
) -> tuple[ShipPlan | None, list[str]]:
    """The format that a model is trained for, with the grids of the saved adapter if it was trained for the same.

    A saved adapter names its own format, also where it is trained further, unless the request states another or
    states that there is none. Also returns lines for the user.
    """
    record = Record.read(saved.path) if saved is not None else None
    if request.ship_as is not None:
        chosen = select_format(registry, request.ship_as, request.origins)
        if record is not None and saved is not None and same_format(chosen, record):
            return ShipPlan(chosen=chosen, saved=saved.path, record=record), []
        return ShipPlan(chosen=chosen), []
    if record is None or saved is None:
        return None, []
    trains = request.purpose is Purpose.TRAIN
    if trains and KEY in request.origins:  # it is null
        return None, [f"{KEY} is null: the adapter {saved.path}, trained as {record.config.name}, no longer is"]
    chosen = recorded_format(registry, record, saved.path)
    plan = ShipPlan(chosen=chosen, saved=saved.path, record=record)
    lines = []
    if not request.compared:
        lines = compare_recorded(record.versions, [chosen.component], f"the adapter {saved.path}")
    if trains:
        lines.append(f"{KEY} is {plan.title()}, as the adapter {saved.path} was trained; for none: --set {KEY}=null")
    return plan, lines


def plan_model(
    registry: Registry, selected: SelectedModel, context: BuildContext, source: ModelSource | None = None
) -> ModelPlan:
    """Everything `load_model` needs, or every problem that prevents it: packages, pairing, device, then the source.

    Reads `config.json`; no weights, and nothing is written. With `source`, nothing is opened.
    """
    for notice in selected.notices:
        context.progress.say(notice)
    collect = Collector()
    request, saved, adapter = selected.request, selected.saved, selected.adapter
    for choice in (selected.loader, adapter, selected.quantizer):
        if choice is not None:
            title, requires = choice.component.title, choice.component.spec.requires
            collect.problems += requirement_problems(title, requires, context.device)
    env = environment(context.device, context.purpose)
    if selected.quantizer is not None and adapter is not None:
        problem = pair_problem(registry, selected.quantizer, adapter, env)
        collect.problems += [problem] if problem is not None else []
    if (ship := selected.ship) is not None:
        if adapter is None:
            raise ConfigError(f"{KEY} needs an adapter", hint=f"{ADAPTER.flag} {DEFAULT_ADAPTER}")
        collect.problems += format_problems(registry, ship.chosen, context.device)
        unsuited = adapter_problem(registry, ship.chosen, adapter, env)
        collect.problems += [unsuited] if unsuited is not None else []
    if source is None:
        opened = collect.run(lambda: open_source(selected.loader, request.ref, context))
        collect.finish()
        assert opened is not None
        source, config = opened
    else:
        collect.finish()
        config = source.config
    quantizer = choose_quantizer(registry, selected, source)
    unread = _unclaimed(registry, config, quantizer, request.ref)
    if unread is not None:
        raise unread
    if selected.quantizer is None:
        component = quantizer.component
        collect.problems += requirement_problems(component.title, component.spec.requires, context.device)
        if adapter is not None:
            problem = pair_problem(registry, quantizer, adapter, env)
            collect.problems += [problem] if problem is not None else []
        for each in collect.problems:
            explain_choice(component, each)
    collect.finish()
    if (check := getattr(quantizer.spec, "check", None)) is not None:
        with attributed_to(quantizer.component, "check()"):
            quantizer.component.waited(lambda: check(quantizer.options, source), "check")
    if ship is not None and (unread_weights := base_problem(ship.chosen, quantizer, env)) is not None:
        raise unread_weights
    if ship is not None and ship.record is None:  # otherwise it was asked when the run was planned
        check_source(ship.chosen, source)
    for named, choice in ((request.quant.name, quantizer), (request.adapter and request.adapter.name, adapter)):
        bare = (named or "").rpartition(":")[2]
        if choice is not None and bare in choice.component.spec.aliases:
            context.progress.say(f"{choice.component.kind.flag} {bare} is an alias of {choice.component.spec.name!r}")
    if saved is not None and (calibrated := saved.calibration) is not None:
        context = replace(context, calibration=lambda: read_calibration(calibrated))

    def tokenizer() -> PreTrainedTokenizerBase:
        with attributed_to(selected.loader.component):
            return source.tokenizer()

    tokens = planned_tokens(
        *(registry, request.add_tokens, saved, adapter, env, embeddings_of(config)),
        *(tokenizer, context.progress.say),
    )
    if tokens and ship is not None:
        raise IncompatibleError(
            f"{KEY} does not train the embeddings of new tokens ({tokens[0].text!r})",
            hint="omit data.add_tokens or --ship-as; or train the tokens first, then the merged model with --ship-as",
        )
    if tokens:
        context = replace(context, new_tokens=tuple(token.id for token in tokens))
    return ModelPlan(
        ref=request.ref,
        source=source,
        loader=selected.loader,
        quantizer=quantizer,
        adapter=adapter,
        saved=saved,
        context=context,
        ship=ship,
        new_tokens=tokens,
    )


def _choose_adapter(registry: Registry, request: ModelRequest, saved: SavedAdapter | None) -> SelectedComponent | None:
    config = request.adapter
    if config is None or config.name is None:
        if request.adapter_path is not None and saved is not None and saved.adapter is None:
            path = saved.path
            if (path / "run.yaml").exists():
                inside = shlex.quote(str(path / "adapter"))
                raise ModelError(f"{str(path)!r} is a run, not an adapter directory", hint=f"--adapter-path {inside}")
            own = config or ComponentConfig()
            return with_options(claimed_adapter(registry, path), own, request.origins)
        return None
    return choose(registry, ADAPTER, config.name, config, request.origins)


def claimed_adapter(registry: Registry, path: Path) -> RegisteredComponent:
    """The adapter method that recognizes the `adapter_config.json` in `path`.

    Raises ModelError if none does, ConfigError if several do.
    """
    file = path / "adapter_config.json"
    if not file.is_file():
        raise ModelError(f"{str(path)!r} does not name its adapter method", hint="--adapter NAME")
    found = registry.claiming(ADAPTER, read_json(file), str(file))
    if len(found) > 1:
        names = " or ".join(f"--adapter {o.full_name}" for o in found)
        raise ConfigError(f"several adapter methods recognize {str(file)!r}", hint=names)
    if not found:
        raise ModelError(
            f"no installed plugin recognizes the adapter that {str(file)!r} describes",
            hint="--adapter NAME; to see the names: smollm3 plugins list",
        )
    return found[0]


def _compare_versions(registry: Registry, request: ModelRequest, saved: SavedAdapter | None) -> list[str]:
    """Compares the versions that made a saved adapter; see `compare_recorded`. Unknown names are reported later."""
    if saved is None or request.compared:
        return []
    used = []
    for kind, config in ((LOADER, request.loader), (QUANTIZER, request.quant), (ADAPTER, request.adapter)):
        if config is not None and config.name is not None:
            with contextlib.suppress(SmolLM3Error):
                used.append(registry.find(kind, config.name))
    return compare_recorded(saved.versions, used, f"the adapter {saved.path}")


def _with_saved(request: ModelRequest, saved: SavedAdapter | None) -> ModelRequest:
    """The request, completed with a saved adapter's method and quantizer; the user's names and options win."""
    if saved is None:
        return request
    if request.adapter is None or request.adapter.name is None:
        request = replace(request, adapter=saved.adapter)
    described, requested = saved.quant, request.quant
    if described is not None and (requested.name is None or same_component(requested.name, described.name)):
        options = {**described.options, **requested.options}
        known = described.set_options() | requested.set_options()
        request = replace(request, quant=replace(described, options=options, given=known))
    return request


def plan_tokenizer(plan: ModelPlan) -> PreTrainedTokenizerBase:
    """The tokenizer of a plan's model: the one saved with its adapter, else the model's."""
    saved = plan.saved
    if saved is not None and (saved.path / "tokenizer_config.json").exists():
        own = load_tokenizer(plan.ref, saved.path, {})
        add_to(own, plan.new_tokens)
        return own
    return plan.tokenizer()
