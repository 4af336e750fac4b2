"""The format that a run is trained for: a quantizer or an exporter, chosen by `train.ship_as` or by a saved adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.api import AdapterSpec, CheckpointQuantizer, Env, ModelSource, Op, Purpose, options_dict
from smollm3_finetune.components.kinds import ADAPTER, EXPORTER, QUANTIZER, Kind
from smollm3_finetune.components.negotiation import environment, provided, refined
from smollm3_finetune.components.registry import RegisteredComponent, Registry, attributed_to, install_command
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.options import build
from smollm3_finetune.config.schema import DEFAULT_ADAPTER, ComponentConfig
from smollm3_finetune.errors import (
    ConfigError,
    IncompatibleError,
    PluginConflictError,
    SmolLM3Error,
    UnknownComponentError,
    did_you_mean,
)
from smollm3_finetune.model_files.writing import saved_dtype
from smollm3_finetune.shipping.record import Record

KEY = "train.ship_as"
FLAG = "--ship-as"
KINDS: Mapping[str, Kind] = {QUANTIZER.name: QUANTIZER, EXPORTER.name: EXPORTER}
NAMED = 6
"""Names in a hint at most."""


@dataclass(frozen=True, kw_only=True)
class ShipPlan:
    """The format that a model is trained for, or was trained for."""

    chosen: SelectedComponent
    saved: Path | None = None
    """The directory of an adapter that was trained for it, whose grids are used; None: grids are made."""
    record: Record | None = None
    """What `shipped.json` in that directory states."""

    @property
    def name(self) -> str:
        """The name of the format, without its distribution."""
        name: str = self.chosen.spec.name
        return name

    @property
    def is_quantizer(self) -> bool:
        return self.chosen.component.kind is QUANTIZER

    def config(self) -> ComponentConfig:
        return self.chosen.as_config()

    def about(self) -> dict[str, Any]:
        """For reports: the kind, the name and the options that differ from their defaults."""
        kind = self.chosen.component.kind.name
        return {"kind": kind, "name": self.chosen.component.full_name, "options": self.chosen.changed_options()}

    def title(self) -> str:
        """`hqq (bits=3)`"""
        options = ", ".join(f"{name}={value}" for name, value in self.chosen.changed_options().items())
        return f"{self.name} ({options})" if options else self.name

    def dtype(self, config: Mapping[str, Any]) -> str:
        """The dtype in which the merged weights are written before the format rounds them."""
        return saved_dtype(None, config) if self.is_quantizer else "float32"

    def notice(self, instead: str) -> str:
        """What to know about a result that is not the format of the run: the command that writes it."""
        return f"the run was trained to be shipped as {self.title()}, not as {instead}; to ship it so: {self.command()}"

    def command(self) -> str:
        """The command that writes the format of a run, `RUN`; its options are those of the run."""
        if not self.is_quantizer:
            return f"smollm3 export RUN --to {self.name}"
        writes = isinstance(self.chosen.create(), CheckpointQuantizer)
        return f"smollm3 merge RUN --requantize {self.name}" if writes else "smollm3 merge RUN"


def select_format(
    registry: Registry, config: ComponentConfig, origins: Mapping[str, str], kind: Kind | None = None
) -> SelectedComponent:
    """The quantizer or else the exporter of this name, with validated options. Imports no torch.

    A quantizer is preferred, unless only the exporter can be trained for. With `kind`, only such a component is
    looked up. Raises what `Registry.find` and `options.build` raise.
    """
    component = _find(registry, config.name or "", kind)
    prefix = f"{KEY}."
    where = {k.removeprefix(prefix): v for k, v in origins.items() if k.startswith(prefix)}
    options = build(component.options_class(), config.options, KEY, where, component.title, given=config.given)
    return SelectedComponent(component=component, options=options)


def _find(registry: Registry, name: str, kind: Kind | None) -> RegisteredComponent:
    found: list[RegisteredComponent] = []
    unknown: list[SmolLM3Error] = []
    for each in KINDS.values() if kind is None else (kind,):
        try:
            found.append(registry.find(each, name))
        except UnknownComponentError as e:
            unknown.append(e)
        except PluginConflictError as e:
            choices = (e.hint or "").replace(f"{each.flag} ", f"{FLAG} ")
            raise PluginConflictError(e.message, hint=choices or None) from e
    if len(found) > 1:
        return found[1] if Op.ROUND_TRIP not in _declared(found[0]) and _round_trips(found[1]) else found[0]
    if found:
        return found[0]
    if kind is not None:
        raise unknown[0]
    install = next((e for e in unknown if (e.hint or "").startswith((install_command(""), "omit "))), None)
    if install is not None:
        raise UnknownComponentError(install.message, hint=install.hint)
    names = _formats(registry, environment("cpu", Purpose.TRAIN))
    near = did_you_mean(name.rpartition(":")[2], names)
    raise UnknownComponentError(
        f"no installed plugin has a format {name!r} that can be trained for",
        hint=f"did you mean {near!r}?" if near else _choices(names),
    )


def _declared(component: RegisteredComponent) -> frozenset[Op]:
    spec: Any = component.spec
    return frozenset(spec.provides) - frozenset(spec.absent)


def _round_trips(component: RegisteredComponent) -> bool:
    return bool(getattr(component.spec, "round_trips", False))


def can_be_trained_for(chosen: SelectedComponent, env: Env) -> bool:
    """Whether a format can be trained for, with these options on this machine."""
    if chosen.component.kind is QUANTIZER:
        return Op.ROUND_TRIP in provided(chosen, env)[0]
    return bool(refined(chosen, env).round_trips)


def _formats(registry: Registry, env: Env) -> list[str]:
    """The names of the installed formats that can be trained for on this machine, with their default options."""
    found = []
    for kind in KINDS.values():
        for component in registry.of(kind):
            with contextlib.suppress(SmolLM3Error):  # broken, or not for this machine
                options = build(component.options_class(), {}, KEY)
                chosen = SelectedComponent(component=component, options=options)
                if not requirement_problems(
                    component.title, component.spec.requires, env.device
                ) and can_be_trained_for(chosen, env):
                    found.append(component.spec.name)
    return sorted(dict.fromkeys(found))


def _choices(names: list[str]) -> str:
    if not names:
        return f"no installed format can be trained for: omit {FLAG}"
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return " or ".join(f"{FLAG} {name}" for name in names[:NAMED]) + more


def training_env(device: str) -> Env:
    """The environment that a format is asked for, whatever it is used for: what it computes must not depend on it."""
    return environment(device, Purpose.TRAIN)


def format_problems(registry: Registry, chosen: SelectedComponent, device: str) -> list[SmolLM3Error]:
    """Why this format cannot be trained for on this machine; empty if it can."""
    component, env = chosen.component, training_env(device)
    problems: list[SmolLM3Error] = [*requirement_problems(component.title, component.spec.requires, device)]
    if can_be_trained_for(chosen, env):
        return problems
    if component.kind is QUANTIZER:
        reason = provided(chosen, env)[1].get(Op.ROUND_TRIP, "the quantizer does not declare it")
        why = f"it does not provide {Op.ROUND_TRIP} ({reason})"
    else:
        why = "its descriptor does not declare round_trips"
        if component.spec.round_trips:  # type: ignore[attr-defined]
            why = "these options cannot be trained for"
    others = [n for n in _formats(registry, env) if n != component.spec.name]
    default = SelectedComponent(component=component, options=build(component.options_class(), {}, KEY))
    hint = _choices(others)
    if can_be_trained_for(default, env):
        hint = f"{FLAG} {component.spec.name} with its default options, or {hint}" if others else (
            f"{FLAG} {component.spec.name} with its default options"
        )  # fmt: skip
    return [*problems, IncompatibleError(f"{FLAG} {component.spec.name}: {why}", hint=hint)]


def adapter_problem(
    registry: Registry, chosen: SelectedComponent, adapter: SelectedComponent, env: Env
) -> IncompatibleError | None:
    """Why this adapter cannot be trained as it is shipped, with adapters that can as the hint; None if it can."""
    if refined(adapter, env).ships and refined(adapter, env).merges:
        return None
    name, flag = adapter.spec.name, f"{FLAG} {chosen.spec.name}"
    if adapter.spec.ships:
        options = ", ".join(f"{k}={v}" for k, v in adapter.changed_options().items())
        return IncompatibleError(
            f"{flag} computes with merged weights only, which {ADAPTER.flag} {name} does not support with {options}",
            hint=f"{ADAPTER.flag} {name} with its default options, or omit {FLAG}",
        )
    names = _shipping_adapters(registry, env)
    return IncompatibleError(
        f"{flag} needs an adapter whose merged weight can be differentiated, which {ADAPTER.flag} {name} does not "
        "declare",
        hint=" or ".join(f"{ADAPTER.flag} {n}" for n in names[:NAMED]) or f"omit {FLAG}",
    )


def base_problem(chosen: SelectedComponent, quantizer: SelectedComponent, env: Env) -> IncompatibleError | None:
    """Why this base cannot be trained as another format: its weights cannot be read. None if they can."""
    ops, absent = provided(quantizer, env)
    if Op.READ_WEIGHT in ops:
        return None
    reason = absent.get(Op.READ_WEIGHT, "the quantizer does not declare it")
    return IncompatibleError(
        f"{FLAG} {chosen.spec.name} needs {Op.READ_WEIGHT} of the base, which {QUANTIZER.flag} {quantizer.spec.name} "
        f"does not provide on {env.device}: {reason}",
        hint=f"{QUANTIZER.flag} none {FLAG} {chosen.spec.name}",
    )


def _shipping_adapters(registry: Registry, env: Env) -> list[str]:
    found = []
    for component in registry.of(ADAPTER):
        spec: Any = component.spec
        assert isinstance(spec, AdapterSpec)
        if spec.ships and not requirement_problems(component.title, spec.requires, env.device):
            found.append(spec.name)
    return sorted(found, key=lambda n: (n != DEFAULT_ADAPTER, n))


class _Unquantized:
    """A source as its model is after the merge: its config does not state a quantizer."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.config = {k: v for k, v in source.config.items() if k != "quantization_config"}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def check_source(chosen: SelectedComponent, source: ModelSource) -> None:
    """Ask the format whether it can hold this model with these options; it raises a SmolLM3Error if not."""
    if (check := getattr(chosen.spec, "check", None)) is not None:
        shown: Any = _Unquantized(source)
        with attributed_to(chosen.component, "check()"):
            chosen.component.waited(lambda: check(chosen.options, shown), "check")


def same_format(one: SelectedComponent, record: Record) -> bool:
    """Whether a format is the one of a record, with the same options; those that change no weight may differ."""
    other = record.config
    if (one.component.kind.name, one.component.full_name) != (record.kind, other.name):
        return False
    with contextlib.suppress(SmolLM3Error):
        options = build(one.component.options_class(), other.options, KEY, given=other.given)
        weightless = frozenset(getattr(one.spec, "weightless_options", ()))
        both = [options_dict(each) for each in (options, one.options)]
        stated, wanted = ({k: v for k, v in each.items() if k not in weightless} for each in both)
        return stated == wanted
    return False


def recorded_format(registry: Registry, record: Record, path: Path) -> SelectedComponent:
    """The format that a saved adapter was trained for. Raises ConfigError if no installed plugin offers it."""
    kind = KINDS[record.kind]
    try:
        return select_format(registry, record.config, {}, kind)
    except UnknownComponentError as e:
        raise ConfigError(
            f"the adapter {path} was trained with {KEY}={record.config.name}, and no active plugin offers it",
            hint=e.hint,
        ) from e
