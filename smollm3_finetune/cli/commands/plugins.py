"""The group `smollm3 plugins`, and its commands `list` and `info`. Does not import torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.commands.plugins_check import check
from smollm3_finetune.cli.commands.plugins_index import index
from smollm3_finetune.cli.commands.plugins_install import install, upgrade
from smollm3_finetune.cli.commands.plugins_new import new
from smollm3_finetune.cli.commands.plugins_search import search
from smollm3_finetune.cli.commands.plugins_uninstall import uninstall
from smollm3_finetune.cli.options import plugin_options
from smollm3_finetune.cli.parsing import CommandGroup
from smollm3_finetune.cli.session import discovered
from smollm3_finetune.errors import ConfigError, SmolLM3Error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smollm3_finetune.components.registry import PluginRecord, RegisteredComponent, Registry
    from smollm3_finetune.config.options import OptionInfo


@click.group(
    cls=CommandGroup,
    for_path="smollm3 plugins check",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def plugins() -> None:
    """Find, install, inspect, check or create plugins."""


for command in (search, install, upgrade, uninstall, new, check, index):
    plugins.add_command(command)


@plugins.command("list", short_help="List plugins: active, disabled or broken.")
@plugin_options
@click.option("--requirements", is_flag=True, help="Show the requirements of each component, and whether they are met.")
@click.option("--device", metavar="NAME", help="With --requirements: check for this device.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_plugins(
    plugin: tuple[str, ...], no_plugins: bool, requirements: bool, device: str | None, as_json: bool
) -> None:
    """List all plugins: active, disabled or broken, with the components they offer or the error."""
    from smollm3_finetune.model.device import check_device, guess_device

    device = device or guess_device()
    check_device(device)
    registry = discovered(plugin, no_plugins)
    records = sorted(registry.plugins, key=lambda r: ORIGINS.get(r.origin, 1))  # built-in first, then those of -p
    needs = {(r.name, r.distribution): _requirements(registry, r, device) for r in records} if requirements else {}
    if as_json:
        fields = ("name", "status", "distribution", "version", "origin", "components", "error", "hint")
        rows = [{f: getattr(r, f) for f in fields} for r in records]
        for row, r in zip(rows, records, strict=True):
            if requirements:
                row["requirements"] = needs[r.name, r.distribution]
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("plugin", "status", "distribution", "requires" if requirements else "offers"):
        table.add_column(column, overflow="fold", no_wrap=column == "plugin")
    colors = {"active": "green", "disabled": "yellow", "broken": "red"}
    for record in records:
        content = _shown_needs(needs[record.name, record.distribution]) if requirements else _by_kind(record.components)
        table.add_row(
            record.name,
            Text(record.status, style=colors[record.status]),
            f"{record.distribution} {record.version}",
            Text(f"{record.error}\nhint: {record.hint}" if record.error else content),
        )
    Console().print(table)


ORIGINS = {"built in": 0, "entry point": 2}
"""The order of the list: the built-in plugin, then those of `-p`, then the installed ones."""


def _requirements(registry: Registry, record: PluginRecord, device: str) -> list[dict[str, Any]]:
    """The requirements of a plugin's components; components with equal requirements are grouped."""
    from smollm3_finetune.components.requirements import requirement_problems

    found: list[dict[str, Any]] = []
    for component in registry.components:
        if (component.plugin, component.distribution) != (record.name, record.distribution):
            continue
        requires, title = component.spec.requires, f"{component.kind.name} {component.spec.name}"
        about = {"distributions": list(requires.distributions), "accelerators": list(requires.accelerators)}
        same = next((f for f in found if {k: f[k] for k in about} == about), None)
        if same is not None:
            same["components"].append(title)
            continue
        try:
            unmet = [p.message for p in requirement_problems("it", requires, device)]
        except SmolLM3Error as e:
            unmet = [e.message]
        found.append({"components": [title], **about, "unmet": unmet})
    return found


def _shown_needs(found: list[dict[str, Any]]) -> str:
    lines = []
    for one in found:
        lines.append(f"{_by_kind(tuple(one['components']))}: {_requirements_line(one, one['distributions'])}")
    return "\n".join(lines)


def _requirements_line(about: Mapping[str, Any], packages: Sequence[str]) -> str:
    """The packages and accelerators that a component requires, and whether they are available."""
    needed = ", ".join((*packages, *about["accelerators"]))
    return f"{needed} ({'; '.join(about['unmet']) or 'met'})" if needed else "no additional packages"


def _by_kind(components: tuple[str, ...]) -> str:
    """`loader hf, tiny; quantizer none`"""
    kinds: dict[str, list[str]] = {}
    for component in components:
        kind, _, name = component.partition(" ")
        kinds.setdefault(kind, []).append(name)
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items())


@plugins.command(short_help="Show a component: options, operations, requirements.")
@plugin_options
@click.argument("name")
@click.option("--device", default=None, metavar="NAME", help="Show operations and requirements for this device.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, plugin: tuple[str, ...], no_plugins: bool, device: str | None, as_json: bool) -> None:
    """Show a component: its options, the operations it needs or provides, and whether its requirements are met."""
    from smollm3_finetune.model.device import check_device, guess_device

    device = device or guess_device()
    check_device(device)
    registry = discovered(plugin, no_plugins)
    origins = {(r.name, r.distribution): r.origin for r in registry.plugins}
    found = [
        {**_about(component, device), "origin": origins[component.plugin, component.distribution]}
        for component in _find_all(registry, name)
    ]
    if as_json:
        click.echo(json.dumps(found, indent=2, default=str))
    else:
        click.echo("\n\n".join(_shown(about) for about in found))


def _find_all(registry: Registry, name: str) -> list[RegisteredComponent]:
    """The components of any kind with this name. Raises UnknownComponentError if there are none."""
    from smollm3_finetune.components.kinds import KINDS
    from smollm3_finetune.components.registry import known_components
    from smollm3_finetune.errors import UnknownComponentError, did_you_mean

    distribution, _, bare = name.rpartition(":")
    found = [
        o
        for kind in KINDS
        for o in registry.of(kind)
        if bare in (o.spec.name, *o.spec.aliases) and distribution in ("", o.distribution)
    ]
    if found:
        return found
    for kind in KINDS:
        if bare in known_components().get(kind.name, {}):
            registry.find(kind, name)
    if any(name in (r.name, r.distribution) for r in registry.plugins):
        raise UnknownComponentError(
            f"{name!r} is a plugin, but `plugins info` shows a component",
            hint="for its components: smollm3 plugins list",
        )
    names = {o.spec.name for o in registry.components}
    similar = did_you_mean(bare, names)
    hint = f"did you mean {similar!r}?" if similar else "smollm3 plugins list"
    raise UnknownComponentError(f"no plugin provides a component named {name!r}", hint=hint)


def _about(component: RegisteredComponent, device: str) -> dict[str, Any]:
    """Everything that is known about a component, as plain values."""
    from dataclasses import replace

    from smollm3_finetune.api import (
        AdapterSpec,
        EvaluatorSpec,
        ExporterSpec,
        FormatterSpec,
        LauncherSpec,
        LoaderSpec,
        ObjectiveSpec,
        OptimizerSpec,
        Purpose,
        QuantizerSpec,
    )
    from smollm3_finetune.cli.output.component_help import option_lines
    from smollm3_finetune.components.negotiation import environment, provided, refined
    from smollm3_finetune.components.requirements import requirement_problems
    from smollm3_finetune.components.selection import SelectedComponent
    from smollm3_finetune.config.options import build, describe

    spec = component.spec
    about: dict[str, Any] = {
        "kind": component.kind.name,
        "name": spec.name,
        "aliases": list(spec.aliases),
        "summary": spec.summary,
        "full_name": component.full_name,
        "version": component.version,
        "plugin": component.plugin,
        "factory": spec.factory,
        "api": spec.api,
        "requires": list(spec.requires.distributions),
        "accelerators": list(spec.requires.accelerators),
        "unmet": [p.message for p in requirement_problems(component.title, spec.requires, device)],
        "suggests": dict(spec.suggests),
        "device": device,
        "options": [_option(i) for i in describe(component.options_class())],
        "options_help": option_lines(component)[1:],
    }
    try:
        defaults: Any = build(component.options_class(), {}, component.kind.section)
    except ConfigError:  # a required option: show the descriptor's values, without `refine`
        defaults = None
        if isinstance(spec, QuantizerSpec | AdapterSpec | ObjectiveSpec | ExporterSpec):
            spec = replace(spec, refine=None)
    chosen = SelectedComponent(component=replace(component, spec=spec), options=defaults)
    env = environment(device, Purpose.TRAIN)
    if isinstance(spec, LoaderSpec | FormatterSpec | EvaluatorSpec):
        about["rank"] = spec.rank
    if isinstance(spec, ObjectiveSpec):
        holds = refined(chosen, env)
        about["reference"], about["reference_model"] = holds.reference, holds.reference_model
        about["fields"] = list(spec.fields)
    if isinstance(spec, QuantizerSpec):
        ops, absent = provided(chosen, env)
        about["provides"] = sorted(ops)
        about["absent"] = {str(k): v for k, v in absent.items()}
        about["needs_calibration"] = spec.needs_calibration
        about["claims"] = spec.claims is not None
        about["marker_files"] = list(spec.marker_files)
    if isinstance(spec, ExporterSpec):
        holds = refined(chosen, environment(device, Purpose.EXPORT))
        about["takes"], about["round_trips"] = holds.takes, holds.round_trips
    if isinstance(spec, LauncherSpec):
        about["waits"], about["sweeps"] = spec.waits, spec.sweeps
    if isinstance(spec, OptimizerSpec):
        about["needs_roles"], about["freezes"] = sorted(spec.needs_roles), sorted(spec.freezes)
        about["shards"], about["states_memory"] = spec.shards, spec.state_bytes is not None
    if isinstance(spec, AdapterSpec):
        holds = refined(chosen, env)
        about["needs"] = sorted(holds.needs)
        about["roles"] = sorted(holds.roles)
        about["traits"] = {t: getattr(holds, t) for t in ("identity_at_start", "packs", "merges", "disables")}
    return about


def _option(info: OptionInfo) -> dict[str, Any]:
    return {"name": info.name, "type": info.type, "default": info.default, "help": info.help, "range": info.range}


_COMPARED = {
    "base": "its base: the adapter must be one that can be disabled",
    "start": "itself before the first step",
    "model": "another model, which is evaluated first",
}
"""What the loss of an objective compares the model with."""


def _shown(about: dict[str, Any]) -> str:
    lines = [click.style(f"{about['kind']} {about['name']}", bold=True) + f": {about['summary']}"]
    rows = [("from", f"{about['full_name'].partition(':')[0]} {about['version']} (plugin {about['plugin']})")]
    if about["aliases"]:
        rows.append(("also called", ", ".join(about["aliases"])))
    if "provides" in about:
        rows.append(("provides", f"{', '.join(about['provides'])} (training on {about['device']})"))
        rows += [("", f"not {op}: {reason}") for op, reason in about["absent"].items()]
    if about.get("claims") or about.get("marker_files"):
        files = ", ".join(("config.json", *about["marker_files"]) if about["claims"] else about["marker_files"])
        rows.append(("recognizes", f"its checkpoints, by {files}"))
    if about.get("needs_calibration"):
        rows.append(("calibrates", "on the training rows, or on calibration.path if set"))
    if about.get("rank"):
        rows.append(("rank", str(about["rank"])))
    if "needs" in about:
        rows.append(("needs", ", ".join(about["needs"])))
        traits = {
            "identity_at_start": (
                "initially leaves the base model's output unchanged",
                "initially changes the base model's output",
            ),
            "packs": ("supports packed rows", "does not support packed rows"),
            "merges": ("can be merged", "cannot be merged"),
            "disables": ("can be disabled", "cannot be disabled"),
        }
        rows.append(("traits", ", ".join(yes if about["traits"][t] else no for t, (yes, no) in traits.items())))
    if about.get("roles"):
        rows.append(("roles", ", ".join(about["roles"])))
    if "needs_roles" in about:
        needed, frozen = about["needs_roles"], about["freezes"]
        rows.append(("adapters", f"those with the roles {', '.join(needed)}" if needed else "all"))
        rows += [("freezes", f"parameters with the role {', '.join(frozen)}")] if frozen else []
        rows.append(("sharding", "works with FSDP" if about["shards"] else "needs whole parameters"))
    if "takes" in about:
        takes = {"model": "a model, into which an adapter is merged first", "adapter": "an adapter alone"}
        rows.append(("exports", takes[about["takes"]]))
    if about.get("round_trips"):
        rows.append(("ships", "what train.ship_as trained for it, bit for bit"))
    if "waits" in about:
        waits = "waits for the end of the run" if about["waits"] else "submits a job and does not wait for its end"
        rows.append(("launches", f"{waits}{', runs the trials of sweeps' if about['sweeps'] else ''}"))
    if about.get("fields"):
        rows.append(("rows", f"must have: {', '.join(about['fields'])}"))
    if (what := _COMPARED.get(about.get("reference", "none"))) is not None:
        other = f" ({about['reference_model']})" if about["reference_model"] is not None else ""
        rows.append(("compares", f"the model with {what}{other}"))
    if about["suggests"]:
        rows.append(("suggests", ", ".join(f"{k}={v}" for k, v in about["suggests"].items())))
    rows.append(("requires", _requirements_line(about, about["requires"])))
    lines += [f"  {label:<12} {text}" for label, text in rows]
    return "\n".join([*lines, "  options", *[f"  {line}" for line in about["options_help"]]])
