"""Checks and plans a run that starts from a saved adapter: its method, its base, its calibration, its template."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from smollm3_finetune.api import BuildContext, options_dict
from smollm3_finetune.components.kinds import ADAPTER, LOADER, QUANTIZER
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.load import same_component
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError, Problems, SmolLM3Error
from smollm3_finetune.files.json import read_json
from smollm3_finetune.model.plan import (
    OWN_NO_QUANTIZER,
    ModelPlan,
    SelectedModel,
    claimed_adapter,
    plan_model,
    select_model,
)
from smollm3_finetune.model.saved_adapter import read_calibration
from smollm3_finetune.model.start_from import StartFrom
from smollm3_finetune.runs.plugin_files import check_missing_plugin_files
from smollm3_finetune.runs.start_from import ADAPTER_CONFIG, Started
from smollm3_finetune.train.own_base import OwnBase, ToBeMerged

FRESH = "--fresh-adapter"


def check_components(registry: Registry, start: Started, plugins: Iterable[str]) -> None:
    """Raises an error that names the plugin file if the adapter needs one that was not passed again."""
    if start.run is None:
        return
    needed = [(ADAPTER, start.saved.adapter), (QUANTIZER, start.saved.quant), (LOADER, start.saved.loader)]
    try:
        for kind, config in needed:
            if config is not None and config.name is not None:
                registry.find(kind, config.name)
    except SmolLM3Error:
        check_missing_plugin_files(start.run, plugins, registry)
        raise


def adapter_to_train(registry: Registry, start: Started) -> ComponentConfig:
    """The adapter of a run with `from`: that of the configuration, on top of what a saved adapter decides.

    Raises ConfigError if the user states another method, or other method options, than those of the adapter. Options
    that concern only training may differ. After a merge, the adapter is a new one of any method.
    """
    config = start.loaded.config.adapter
    if start.earlier.fresh:
        return config
    saved = start.saved.adapter or _of_another_tool(registry, start)
    if saved is None or saved.name is None:
        return config
    _check_method(registry, start, saved)
    options = {**saved.options, **config.options}
    return ComponentConfig(name=saved.name, options=options, given=saved.set_options() | config.set_options())


def _of_another_tool(registry: Registry, start: Started) -> ComponentConfig | None:
    """The method and the options that the `adapter_config.json` of another tool states; None if there is none."""
    file, stated = start.saved.path / ADAPTER_CONFIG, start.stated.config.adapter.name
    if not file.is_file():
        return None  # loading reports what is wrong
    component = claimed_adapter(registry, start.saved.path) if stated is None else registry.find(ADAPTER, stated)
    read = getattr(component.spec, "read_options", None)
    if read is None:
        return ComponentConfig(name=component.full_name)
    with attributed_to(component, "read_options()"):
        found = dict(component.waited(lambda: read(read_json(file)), "read_options"))
    usable = {}
    for name, value in found.items():
        with contextlib.suppress(SmolLM3Error):
            choose(registry, ADAPTER, component.full_name, {name: value})
            usable[name] = value
    return ComponentConfig(name=component.full_name, options=usable)


def _check_method(registry: Registry, start: Started, saved: ComponentConfig) -> None:
    """Raises ConfigError if the user states another method or other options than `saved`."""
    stated = start.stated.config.adapter
    assert saved.name is not None
    component = registry.find(ADAPTER, saved.name)
    if stated.name is not None and not same_component(stated.name, saved.name):
        other = registry.find(ADAPTER, stated.name)
        if other.full_name != component.full_name:
            raise ConfigError(
                f"{start.stated.origin('adapter.name')}: the adapter of {start.title} is {component.spec.name!r}, "
                f"and cannot be trained further as {other.spec.name!r}",
                hint=f"omit it; to merge the adapter and train a new one: {FRESH}",
            )
    if not stated.options:
        return
    before = options_dict(choose(registry, ADAPTER, component.full_name, saved).options)
    merged = ComponentConfig(options={**saved.options, **stated.options})
    now = options_dict(choose(registry, ADAPTER, component.full_name, merged, start.stated.origins).options)
    free = frozenset(getattr(component.spec, "training_options", ()))
    for name, value in now.items():
        if value != before[name] and name not in free:
            raise ConfigError(
                f"{start.stated.origin(f'adapter.{name}')}: the adapter of {start.title} has "
                f"{name}={_shown(before[name])}, which cannot change to {_shown(value)}",
                hint=f"omit it; to merge the adapter and train a new one: {FRESH}",
            )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def plan_started(
    registry: Registry, start: Started, about: SelectedModel, context: BuildContext, own_base: OwnBase | None
) -> ModelPlan:
    """The plan of the model of a run with `from`. Raises ModelError if its base is another one than the adapter's."""
    if own_base is not None and own_base.merge is not None:
        merged = _on_merged(registry, start, about, context, own_base.merge)
        return replace(merged, earlier=_with_method(start, own_base.merge))
    model = plan_model(registry, about, context)
    saved = start.saved
    if saved.quant is not None and saved.quant.name is not None:
        before = registry.find(QUANTIZER, saved.quant.name)
        if before.full_name != model.quantizer.component.full_name:
            name = model.quantizer.spec.name
            raise IncompatibleError(
                f"the adapter of {start.title} was trained on a base of quantizer {before.spec.name!r}, not of "
                f"{name!r}",
                hint=f"omit {QUANTIZER.flag}; to merge the adapter and train a new one: {FRESH} --quant {name}",
            )
    check_source(start, model)
    return replace(model, earlier=_with_method(start, model))


def _with_method(start: Started, plan: ModelPlan) -> StartFrom:
    """What the run starts from, with the method that was found for an adapter of another tool."""
    assert plan.adapter is not None
    if start.saved.adapter is not None:
        return start.earlier
    *before, last = start.earlier.stages
    return replace(start.earlier, stages=(*before, replace(last, adapter=plan.adapter.spec.name)))


def check_source(start: Started, model: ModelPlan) -> None:
    """Raises ModelError if the opened model is not the one that the adapter was trained on, as far as that is known."""
    expected = start.saved.source_fingerprint
    if expected is None or model.source.fingerprint == expected:
        return
    stated = start.is_stated("model")
    raise ModelError(
        f"the adapter of {start.title} was trained on other weights than those of {model.ref!r}: expected the "
        f"fingerprint {expected[:12]}…, found {model.source.fingerprint[:12]}…",
        hint="omit --model" if stated else f"restore {start.earlier.model!r}, or train a new adapter without --from",
    )


def _on_merged(
    registry: Registry, start: Started, about: SelectedModel, context: BuildContext, merge: ModelPlan
) -> ModelPlan:
    """The plan of a new adapter on a merged model that does not exist yet.

    The quantizer of the earlier run is used if it can quantize the merged model, unless the user states one.
    """
    source = ToBeMerged(merge)
    try:
        return plan_model(registry, about, context, source)
    except SmolLM3Error as e:
        first = e.problems[0] if isinstance(e, Problems) else e
        quant = about.quantizer
        if start.is_stated("quant.name") or quant is None or quant.component.full_name == OWN_NO_QUANTIZER:
            raise
        request = replace(about.request, quant=ComponentConfig(name=OWN_NO_QUANTIZER))
        dense = plan_model(registry, select_model(registry, request), context, source)
        context.progress.say(f"the merged model is not quantized: {first.message}")
        return dense


def with_kept_calibration(start: Started, model: ModelPlan) -> tuple[ModelPlan, Sequence[Sequence[int]] | None]:
    """The plan with the calibration rows of the adapter's base in memory, and these rows; None if there are none.

    Raises ModelError if the base can only be quantized again with rows that are missing, and ConfigError if the user
    states others.
    """
    if start.earlier.fresh:
        return model, None
    if (file := start.saved.calibration) is not None:
        ids = read_calibration(file)
        if stated := next((key for key in start.stated.origins if key.startswith("calibration.")), None):
            raise ConfigError(
                f"{start.stated.origin(stated)}: the base of {start.title} was quantized with its own calibration "
                f"rows, so {stated} has no effect",
                hint=f"omit it; to quantize the merged model with other rows: {FRESH}",
            )
        return replace(model, context=replace(model.context, calibration=lambda: ids)), ids
    if _calibrates(model) and start.saved.base_fingerprint is not None:
        raise ModelError(
            f"the base of the adapter {start.saved.path} was quantized with calibration rows that are missing: "
            "calibration.json of its run",
            hint=f"copy calibration.json of the run into {start.saved.path.absolute().parent}",
        )
    return model, None


def _calibrates(model: ModelPlan) -> bool:
    """Whether the base is quantized with calibration rows: not if it is a quantized checkpoint already."""
    spec: Any = model.quantizer.spec
    if not getattr(spec, "needs_calibration", False) or "quantization_config" in model.source.config:
        return False
    return not any(model.source.has_file(name) for name in spec.marker_files)
