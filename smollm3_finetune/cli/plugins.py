"""`smollm3 plugins list|info`. Neither imports torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.common import plugin_options

if TYPE_CHECKING:
    from smollm3_finetune.registry import Offer, Registry


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def plugins() -> None:
    """Show the installed plugins and what they offer."""


def _discover(plugin: tuple[str, ...], no_plugins: bool) -> Registry:
    """Quietly: `list` shows broken plugins itself."""
    from smollm3_finetune.discovery import Wanted, discover

    return discover(Wanted.of(plugin, no_plugins))


@plugins.command("list", short_help="List plugins: active, disabled or broken.")
@plugin_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_plugins(plugin: tuple[str, ...], no_plugins: bool, as_json: bool) -> None:
    """List every plugin: active, disabled or broken, with what it offers or what is wrong with it."""
    registry = _discover(plugin, no_plugins)
    if as_json:
        fields = ("name", "status", "distribution", "version", "origin", "components", "error")
        click.echo(json.dumps([{f: getattr(r, f) for f in fields} for r in registry.plugins], indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("plugin", "status", "distribution", "offers"):
        table.add_column(column, overflow="fold", no_wrap=column == "plugin")
    colours = {"active": "green", "disabled": "yellow", "broken": "red"}
    for record in registry.plugins:
        offers = record.error if record.error else _by_kind(record.components)
        table.add_row(
            record.name,
            Text(record.status, style=colours[record.status]),
            f"{record.distribution} {record.version}",
            Text(offers),
        )
    Console().print(table)


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
@click.option("--device", default=None, metavar="NAME", help="Show what holds on this device.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, plugin: tuple[str, ...], no_plugins: bool, device: str | None, as_json: bool) -> None:
    """Show a component: its options, what it needs or provides, and whether its requirements are met."""
    from smollm3_finetune.device import check_device, guess_device

    device = device or guess_device()
    check_device(device)
    registry = _discover(plugin, no_plugins)
    found = [_about(offer, device) for offer in _find_all(registry, name)]
    if as_json:
        click.echo(json.dumps(found, indent=2, default=str))
    else:
        click.echo("\n\n".join(_shown(about) for about in found))


def _find_all(registry: Registry, name: str) -> list[Offer]:
    """The components of any kind with this name. Raises UnknownComponentError with a suggestion."""
    from smollm3_finetune.errors import UnknownComponentError
    from smollm3_finetune.kinds import KINDS
    from smollm3_finetune.options import did_you_mean
    from smollm3_finetune.registry import known_components

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
    names = {o.spec.name for o in registry.offers}
    near = did_you_mean(bare, names)
    hint = f"did you mean {near!r}?" if near else "smollm3 plugins list"
    raise UnknownComponentError(f"no plugin offers a component {name!r}", hint=hint)


def _about(offer: Offer, device: str) -> dict[str, Any]:
    """Everything there is to say about a component, as plain values."""
    from smollm3_finetune.api import AdapterSpec, Purpose, QuantizerSpec
    from smollm3_finetune.cli.component_help import option_lines
    from smollm3_finetune.compat import Chosen, environment, provided, refined
    from smollm3_finetune.options import build
    from smollm3_finetune.requirements import requirement_problems

    spec = offer.spec
    about: dict[str, Any] = {
        "kind": offer.kind.name,
        "name": spec.name,
        "aliases": list(spec.aliases),
        "summary": spec.summary,
        "full_name": offer.full_name,
        "version": offer.version,
        "plugin": offer.plugin,
        "factory": spec.factory,
        "requires": list(spec.requires.distributions),
        "accelerators": list(spec.requires.accelerators),
        "unmet": [p.message for p in requirement_problems(offer.title, spec.requires, device)],
        "suggests": dict(spec.suggests),
        "device": device,
        "options_help": option_lines(offer)[1:],
    }
    defaults: Any = build(offer.options_class(), {}, offer.kind.section)
    chosen = Chosen(spec=spec, options=defaults)
    if isinstance(spec, QuantizerSpec):
        ops, absent = provided(chosen, environment(device, Purpose.TRAIN))
        about["provides"] = sorted(ops)
        about["absent"] = {str(k): v for k, v in absent.items()}
        about["needs_calibration"] = spec.needs_calibration
    if isinstance(spec, AdapterSpec):
        holds = refined(chosen)
        about["needs"] = sorted(holds.needs)
        about["traits"] = {t: getattr(holds, t) for t in ("identity_at_start", "packs", "merges", "disables")}
    return about


def _shown(about: dict[str, Any]) -> str:
    lines = [click.style(f"{about['kind']} {about['name']}", bold=True) + f": {about['summary']}"]
    rows = [("from", f"{about['full_name'].partition(':')[0]} {about['version']} (plugin {about['plugin']})")]
    if about["aliases"]:
        rows.append(("also called", ", ".join(about["aliases"])))
    if "provides" in about:
        rows.append(("provides", f"{', '.join(about['provides'])} (training on {about['device']})"))
        rows += [("", f"not {op}: {reason}") for op, reason in about["absent"].items()]
    if "needs" in about:
        rows.append(("needs", ", ".join(about["needs"])))
        traits = {
            "identity_at_start": "starts as the base",
            "packs": "rows can be packed",
            "merges": "can be merged",
            "disables": "can be switched off",
        }
        rows.append(("traits", ", ".join(text if about["traits"][t] else f"not: {text}" for t, text in traits.items())))
    if about["suggests"]:
        rows.append(("suggests", ", ".join(f"{k}={v}" for k, v in about["suggests"].items())))
    met = "; ".join(about["unmet"]) or "met"
    rows.append(("requires", f"{', '.join((*about['requires'], *about['accelerators'])) or 'nothing more'} ({met})"))
    lines += [f"  {label:<12} {text}" for label, text in rows]
    return "\n".join([*lines, "  options", *[f"  {line}" for line in about["options_help"]]])
