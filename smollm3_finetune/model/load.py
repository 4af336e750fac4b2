"""Loads models of every variant: `load_model` composes a loader, a quantizer and an adapter without knowing them.

Components are composed only here. The loader opens a source without reading weights, the quantizer loads it, and the
adapter attaches to the loaded base.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import (
    Adapted,
    Adapter,
    Base,
    BuildContext,
    ModelSource,
    Progress,
    Purpose,
    Quantizer,
    seeded,
)
from smollm3_finetune.components.kinds import QUANTIZER
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.errors import ConfigError, ModelError, UnsupportedOp
from smollm3_finetune.files.checksums import CHECKSUMS, write_checksums
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.partial import unfinished
from smollm3_finetune.files.writing import publish_files
from smollm3_finetune.model.adapter_card import Training, edited_card, write_card
from smollm3_finetune.model.arguments import (
    MAX_SEED,
    component,
    instance,
    plugin_names,
    purpose_of,
    text_or_path,
    texts,
    torch_name,
    whole_number,
)
from smollm3_finetune.model.dropout import SwitchedOff, switch_off
from smollm3_finetune.model.new_tokens import declared_tokens, with_new_rows
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, plan_model, plan_tokenizer, select_model
from smollm3_finetune.model.saved_adapter import EDITABLE, SavedAdapter
from smollm3_finetune.model.start_from import Stage
from smollm3_finetune.model.trained_context import check_trained_context
from smollm3_finetune.model_files.stops import as_ids, joined
from smollm3_finetune.paths import user_path
from smollm3_finetune.shipping.install import install

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.components.registry import Registry


ADAPTED = ("disabled", "on_step", "save")
"""The methods of `Adapted`."""


@dataclass
class LoadedModel:
    """A model, its tokenizer and its plan: one interface for every variant."""

    plan: ModelPlan
    base: Base
    adapted: Adapted | None
    dropout: SwitchedOff | None = None
    """The dropout of the base, if it was switched off."""
    stage: Stage | None = None
    """The run that trains the adapter, which is saved with it."""

    def __post_init__(self) -> None:
        if self.adapted is not None:
            from smollm3_finetune.api.adapter_switch import note_adapter

            note_adapter(self.adapted)  # `without_adapter` finds it

    @property
    def model(self) -> nn.Module:
        """The module to call: the adapted model, or the base if there is no adapter."""
        return self.base.model if self.adapted is None else self.adapted.model

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer saved with the adapter, if there is one, else the model's."""
        return plan_tokenizer(self.plan)

    def stop_at(self, ids: Sequence[int]) -> None:
        """Make generation stop at the token `ids` too, also after the model is saved; the last one ends a turn."""
        if ids:
            self.tokenizer.eos_token = self.tokenizer.convert_ids_to_tokens(ids[-1])
            own = as_ids(self.base.model.generation_config.eos_token_id)
            self.base.model.generation_config.eos_token_id = joined(own, ids)

    def disabled(self) -> AbstractContextManager[None]:
        """Use the base without its adapter inside the context. Raises UnsupportedOp if the adapter changes the base."""
        if self.adapted is None:
            raise UnsupportedOp("there is no adapter to disable")
        from smollm3_finetune.api.adapter_switch import note_adapter

        return note_adapter(self.adapted).off()  # an objective may disable it once more inside

    def save(self, path: str | Path, training: Training | None = None) -> None:
        """Write the adapter, its tokenizer, the description of its base, its card and `checksums.json` into `path`.

        A directory that does not exist yet appears whole, and everything is on disk when the call returns. Files with
        other names in an existing directory stay, and so does a model card that a user edited. The card contains
        `training`. Raises UnsupportedOp without an adapter, ConfigError if `path` cannot be a directory, and WriteError
        if a file cannot be written.
        """
        path = user_path(text_or_path("path", path), "the output directory")
        if blocked := next((p for p in (path, *path.absolute().parents) if p.exists() and not p.is_dir()), None):
            raise ConfigError(f"the output directory {str(path)!r} cannot be created: {str(blocked)!r} is a file")
        with writing(path):
            self.publish(path, training)

    def publish(self, path: Path, training: Training | None = None, saved: Sequence[Path] | None = None) -> None:
        """`save` into a path that was checked. Failed writes raise the exceptions of the libraries.

        With `saved`, the files that `write` has written earlier, they are published instead of the current weights.
        """
        with unfinished(path / "adapter" if path.is_dir() else path) as partial:
            for name in EDITABLE:
                if (path / name).is_file():  # kept as it is
                    partial.mkdir(exist_ok=True)
                    shutil.copyfile(path / name, partial / name)
            if saved is None:
                self.write(partial, training)
            else:
                partial.mkdir(parents=True, exist_ok=True)
                for file in saved:
                    (shutil.copytree if file.is_dir() else shutil.copyfile)(file, partial / file.name)
                self.write_card(partial, training, edited_card(partial))
            write_checksums(partial, without=EDITABLE)
            publish_files(partial, path, last=CHECKSUMS)

    def write(self, path: Path, training: Training | None = None) -> None:
        """Write the files of `save` without checksums, into a directory whose checksums are written later."""
        if self.adapted is None or self.plan.adapter is None:
            raise UnsupportedOp("there is no adapter to save", hint="load_model(…, adapter='lora')")
        path.mkdir(parents=True, exist_ok=True)
        edited = edited_card(path)
        with self.dropout.stated() if self.dropout is not None else nullcontext():
            self.adapted.save(path)
        self.tokenizer.save_pretrained(str(path))
        # written directly: `save_pretrained` would refuse the contradictory generation config of some models
        self.base.model.generation_config.to_json_file(str(path / "generation_config.json"))
        self.write_card(path, training, edited)
        self.describe(path)

    def write_card(self, path: Path, training: Training | None = None, edited: str | None = None) -> None:
        """Write the model card of the adapter in `path`, or the `edited` one."""
        write_card(self.plan, path, training, edited, loads_alone=getattr(self.adapted, "loads_alone", True))

    def stages(self) -> tuple[Stage, ...]:
        """The runs that led to the adapter, earliest first, with that of `stage`; empty without it."""
        if self.stage is None:
            return ()
        return (*(self.plan.earlier.earlier() if self.plan.earlier is not None else ()), self.stage)

    def describe(self, path: Path) -> None:
        """Write `smollm3.json` beside a saved adapter."""
        plan = self.plan
        choices = [c for c in (plan.loader, plan.quantizer, plan.adapter) if c is not None]
        SavedAdapter(
            path=path,
            model=plan.ref,
            loader=plan.pinned_loader(),
            quant=plan.quantizer.as_config(),
            adapter=plan.adapter.as_config() if plan.adapter else None,
            base_fingerprint=self.base.fingerprint,
            source_fingerprint=plan.source.fingerprint,
            stages=self.stages(),
            new_tokens=plan.new_tokens,
            versions={c.component.distribution: c.component.version for c in choices},
        ).write()


def load_model(
    ref: str | Path = "tiny",
    *,
    quant: str | Mapping[str, Any] | None = None,
    adapter: str | Mapping[str, Any] | None = None,
    loader: str | Mapping[str, Any] | None = None,
    quant_options: Mapping[str, Any] | None = None,
    adapter_options: Mapping[str, Any] | None = None,
    loader_options: Mapping[str, Any] | None = None,
    adapter_path: str | Path | None = None,
    purpose: Purpose | str = Purpose.INFER,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
    calibration: Callable[[], Sequence[Sequence[int]]] | None = None,
    total_steps: int | None = None,
    ship_as: str | Mapping[str, Any] | None = None,
    add_tokens: Sequence[str] = (),
    check_base: bool = True,
    cache: Cache | None = None,
    progress: Progress | None = None,
    registry: Registry | None = None,
    plugins: Sequence[str] = (),
) -> LoadedModel:
    """Load `ref` with a quantizer and an adapter, each by the name that an installed plugin gives it.

    A component with options is a mapping, as in YAML: `quant={"name": "gptq", "bits": 4}`. `quant_options` and the
    like are added to it.

    `ref` is a Hub id, a directory, a file that a loader knows, or `tiny`, which is embedded. Without `quant`,
    the quantizer that recognizes the checkpoint is used, else none. Without `adapter`, nothing is attached, unless
    `adapter_path` holds a saved adapter: it is restored on its base, or on any base with `check_base=False`.
    `calibration` returns token ids, for quantizers that need them; `total_steps` is the number of optimizer steps of
    the whole run, for adapters with a schedule. `ship_as` names the format that the model is trained for, as the key
    `train.ship_as`; an adapter that was trained for one names it itself. `add_tokens` are texts that become tokens of
    their own: a new adapter trains the rows of those that the tokenizer lacks. `plugins` are files or modules, as `-p`
    takes them.

    Raises a `SmolLM3Error` before any weights are read if an argument, a name, an option, a pair, a package or the
    device is wrong.

        loaded = load_model(
            "HuggingFaceTB/SmolLM3-3B", quant="bnb-4bit", adapter={"name": "lora", "rank": 8}, purpose="train"
        )
        loaded.model, loaded.tokenizer
    """
    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.components.registry import Registry

    ref, reason = text_or_path("ref", ref), purpose_of(purpose)
    if calibration is not None and not callable(calibration):
        raise ConfigError(
            f"calibration: expected a function that returns rows of token ids, got {calibration!r}",
            hint="calibration=lambda: rows",
        )
    path = user_path(text_or_path("adapter_path", adapter_path), "adapter_path:") if adapter_path is not None else None
    steps = None if total_steps is None else whole_number("total_steps", total_steps, 1)
    asked = torch_name("device", device), torch_name("dtype", dtype), whole_number("seed", seed, 0, MAX_SEED)
    request = ModelRequest(
        ref=ref,
        loader=component("loader", loader, loader_options),
        quant=component("quant", quant, quant_options),
        adapter=component("adapter", adapter, adapter_options) if adapter is not None else None,
        adapter_path=path,
        purpose=reason,
        ship_as=component("ship_as", ship_as, None) if ship_as is not None else None,
        add_tokens=declared_tokens(texts("add_tokens", add_tokens), None),
    )
    if (request.adapter is None or request.adapter.name is None) and (adapter is not None or adapter_options):
        raise ConfigError("adapter: options are given without a name", hint='adapter={"name": "NAME"}')
    names = plugin_names(plugins)
    registry = instance("registry", registry, Registry) or discover(PluginSelection.of(names))
    selected = select_model(registry, request)
    context = build_context(reason, *asked, calibration, instance("cache", cache, Cache), progress)
    return compose(plan_model(registry, selected, context), total_steps=steps, check_base=check_base)


def parts(plan: ModelPlan) -> tuple[Quantizer, Adapter | None]:
    """The quantizer and the adapter of a plan, created but not used yet.

    Raises PluginError or MissingRequirementError if one cannot be imported or created, before any weights are read.
    """
    return plan.quantizer.create(), plan.adapter.create() if plan.adapter is not None else None


def compose(
    plan: ModelPlan,
    *,
    made: tuple[Quantizer, Adapter | None] | None = None,
    total_steps: int | None = None,
    check_base: bool = True,
    without_dropout: bool = False,
) -> LoadedModel:
    """Carry out a plan: load the base, then attach a fresh adapter or restore the saved one.

    `made` are the plan's `parts`, for a caller that needs to know early whether they can be created. With
    `without_dropout`, the base has no dropout in training.
    """
    if check_base:
        check_trained_context(plan)
    quantizer, adapter = made or parts(plan)
    base = load_planned_base(plan, quantizer, check_base=check_base)
    dropout = switch_off(base.model) if without_dropout else None
    if adapter is None or plan.adapter is None:
        return LoadedModel(plan=plan, base=base, adapted=None, dropout=dropout)
    if plan.saved is None:
        with attributed_to(plan.adapter.component), seeded(plan.context.seed, plan.context.device):
            adapted = adapter.attach(base, plan.context, total_steps)
            plan.adapter.component.check_methods(adapted, ADAPTED, "attach()")
        return LoadedModel(plan=plan, base=base, adapted=as_shipped(plan, base, adapted), dropout=dropout)
    adapted = restored(plan, adapter, base, total_steps)
    return LoadedModel(plan=plan, base=base, adapted=as_shipped(plan, base, adapted), dropout=dropout)


def as_shipped(plan: ModelPlan, base: Base, adapted: Adapted) -> Adapted:
    """The adapted model, computing with the weights of the format that it is trained for; unchanged without one.

    On another base than its own, an adapter computes as usual: the grids of the format are those of its own base.
    """
    if plan.ship is None:
        return adapted
    assert plan.adapter is not None
    known = plan.saved.base_fingerprint if plan.saved is not None else None
    if plan.ship.record is not None and known is not None and known != base.fingerprint:
        plan.context.progress.say(
            f"the adapter was trained to be shipped as {plan.ship.title()}, but on another base: its weights are not "
            "rounded"
        )
        return adapted
    plan.adapter.component.check_methods(adapted, ("merged_layers",), "its adapted model")
    return install(base, adapted, plan.ship, plan.source, plan.context)


def load_base(choice: SelectedComponent, quantizer: Quantizer, source: ModelSource, context: BuildContext) -> Base:
    """The weights of `source`, loaded by `quantizer`, which was created from `choice`.

    Raises PluginError if it fails; a SmolLM3Error that it raises on purpose passes unchanged.
    """
    with attributed_to(choice.component):
        base = quantizer.load(source, context)
        if not isinstance(base, Base):
            raise TypeError(f"load() returned {type(base).__name__}, not a Base")
    return base


def load_planned_base(plan: ModelPlan, quantizer: Quantizer, *, check_base: bool) -> Base:
    """The base of a plan, with rows for its new tokens, which are added after its weights were quantized.

    With `check_base`, raises ModelError if the plan's saved adapter was trained on other weights.
    """
    base = load_base(plan.quantizer, quantizer, plan.source, plan.base_context)
    if check_base and plan.saved is not None and plan.adapter is not None:
        check_fingerprint(plan, base)
    return with_new_rows(base, plan.new_tokens, plan.quantizer.component.title)


def check_fingerprint(plan: ModelPlan, base: Base) -> None:
    """Raises ModelError if the plan's saved adapter was trained on other weights than those of `base`."""
    assert plan.saved is not None
    trained_on = plan.saved.base_fingerprint
    if trained_on is not None and trained_on != base.fingerprint:
        quant = plan.saved.quant.name if plan.saved.quant is not None else None
        used = (
            f" with quantizer {quant!r}: {QUANTIZER.flag} {quant}"
            if quant not in (None, plan.quantizer.component.spec.name, plan.quantizer.component.full_name)
            else ""
        )
        again = ", quantized again with the run's calibration rows" if plan.saved.calibration is not None else ""
        raise ModelError(
            f"the adapter in {plan.saved.path} was not trained on the weights of {plan.ref!r} with "
            f"{plan.quantizer.component.title}{again}: expected the fingerprint {trained_on[:12]}…, "
            f"found {base.fingerprint[:12]}…",
            hint=f"it was trained on {plan.saved.model!r}{used}"
            + ("" if plan.context.purpose is Purpose.TRAIN else "; to use it anyway: --any-base"),
        )


def restored(plan: ModelPlan, adapter: Adapter, base: Base, total_steps: int | None = None) -> Adapted:
    """The plan's saved adapter on `base`; the fingerprint is not checked. `total_steps` is that of a resumed run."""
    assert plan.adapter is not None
    assert plan.saved is not None
    with attributed_to(plan.adapter.component):
        adapted = adapter.restore(base, plan.saved.path, plan.context, total_steps)
        plan.adapter.component.check_methods(adapted, ADAPTED, "restore()")
    return adapted


def build_context(
    purpose: Purpose,
    device: str,
    dtype: str,
    seed: int,
    calibration: Callable[[], Sequence[Sequence[int]]] | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
    elsewhere: str | None = None,
) -> BuildContext:
    """The context of a run on this machine; imports torch to resolve the device.

    A run that will execute on other machines has their device type, `elsewhere`.
    """
    from smollm3_finetune.cache.store import Cache as CacheClass
    from smollm3_finetune.model.device import resolve_device, resolve_dtype
    from smollm3_finetune.progress import Silent

    resolved, progress = resolve_device(device, elsewhere), progress or Silent()
    more: dict[str, Any] = {} if calibration is None else {"calibration": calibration}
    return BuildContext(
        purpose=purpose,
        device=resolved,
        dtype=resolve_dtype(dtype, resolved, here=resolved != elsewhere),
        seed=seed,
        cache=(cache or CacheClass.default()).reporting(progress.say),
        progress=progress,
        **more,
    )
