"""What `plugins install`, `upgrade`, `uninstall` and `search` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smollm3_finetune.cli.commands.plugins_check import marks
from smollm3_finetune.components.kinds import KINDS
from smollm3_finetune.installing.plan import newer

if TYPE_CHECKING:
    from smollm3_finetune.installing.environment import InstalledDistribution
    from smollm3_finetune.installing.examine import Examined
    from smollm3_finetune.installing.install import Installation
    from smollm3_finetune.installing.plan import Plan
    from smollm3_finetune.installing.search import Row
    from smollm3_finetune.installing.uninstall import Removal


USES = 4
"""The number of components whose use is shown."""


def _table(*columns: str, narrow: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in narrow)
    return table


def print_plan(plan: Plan) -> None:
    """What would change, and what is there already."""
    for one in plan.satisfied:
        click.echo(f"{one.title} is installed already{_instead(plan, one)}")
    if not plan.changes:
        return
    table = _table("distribution", "now", "then", "change", "from", narrow=("distribution", "now", "then", "change"))
    for change in plan.changes:
        source = f"{change.source} (editable)" if change.editable else change.source
        reason = source or ("" if change.requested else "required by the above")
        table.add_row(change.name, change.before or "", change.after or "?", newer(change.before, change.after),
                      Text(reason))  # fmt: skip
    Console().print(table)


def _instead(plan: Plan, one: InstalledDistribution) -> str:
    """What a user may have wanted who installs what is installed already."""
    if any(r.source and r.name == canonicalize_name(one.name) for r in plan.requests):
        return "; to install this file of the same version, uninstall it first"
    return "" if plan.upgrades else f"; to upgrade it: smollm3 plugins upgrade {one.name}"


def print_checks(plugins: Sequence[Examined]) -> None:
    """One row for each plugin: what it offers, and what its checks say; for a broken one, how to remove it."""
    good, bad = marks()
    table = _table("plugin", "distribution", "offers", "check", narrow=("plugin",))
    for one in plugins:
        if one.ok:
            says = Text(f"{good} {one.checks} checks", style="green")
        else:
            word = "broken" if one.broken else f"{len(one.failed)} of {one.checks} checks failed"
            says = Text(f"{bad} {word}", style="red")
        offers = _by_kind(one.components) or "nothing"
        table.add_row(one.plugin, f"{one.distribution} {one.version}", Text(offers), says)
    Console().print(table)
    for one in plugins:
        if one.ok and one.components:
            click.echo(f"to use {one.plugin}: {_usage(one.components)}")
        for failed in one.failed:
            click.echo(f"{bad} {one.distribution} {one.version}: {failed}")
        for unmet in one.unmet:
            click.echo(f"{click.style('needs', fg='yellow')} {unmet}")
        if not one.ok:
            click.echo(f"  to uninstall it: smollm3 plugins uninstall {one.distribution}")
            click.echo(f"  all checks: smollm3 plugins check {one.distribution}")


def _usage(components: Sequence[str]) -> str:
    """What selects a component on the command line: `--quant four`, or `smollm3 NAME` for a command."""
    flags = {kind.name: kind.flag for kind in KINDS}
    uses = [f"{flags[kind]} {name}" for kind, _, name in (c.partition(" ") for c in components)]
    return ", ".join(uses) if len(uses) <= USES else f"{', '.join(uses[:USES])}, …"


def _by_kind(components: Sequence[str]) -> str:
    """`loader hf, tiny; quantizer none`"""
    kinds: dict[str, list[str]] = {}
    for component in components:
        kind, _, name = component.partition(" ")
        kinds.setdefault(kind, []).append(name)
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items())


def as_data(
    plan: Plan, left: Mapping[str, str], *, dry_run: bool = False, done: Installation | None = None
) -> dict[str, Any]:
    """The plan and the result for `--json`."""
    return {
        "dry_run": dry_run,
        "installer": plan.installer.name,
        "changes": [c.as_dict() for c in plan.changes],
        "installed_already": [one.title for one in plan.satisfied],
        "left_out": dict(left),
        "plugins": [p.as_dict() for p in done.plugins] if done is not None else [],
    }


def print_removal(removal: Removal, word: str) -> None:
    """What is uninstalled, who needs it, and what stays."""
    for one in removal.distributions:
        click.echo(f"{word}: {one.title} (plugin {', '.join(one.plugins)})")
    for name, others in removal.needed_by.items():
        if others:
            click.echo(f"{click.style('warning', fg='yellow')}: {', '.join(others)} requires {name}", err=True)
    if removal.stays:
        click.echo(f"stays, required by nothing else: {', '.join(one.title for one in removal.stays)}")
        names = " ".join(one.name for one in removal.stays)
        click.echo(f"  to uninstall that too: {removal.installer.shown('uninstall', names)}")


def removal_data(removal: Removal, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "installer": removal.installer.name,
        "uninstalled": [{"name": d.name, "version": d.version} for d in removal.distributions],
        "stays": [{"name": d.name, "version": d.version} for d in removal.stays],
        "needed_by": {n: list(o) for n, o in removal.needed_by.items()},
    }


def print_found(rows: Sequence[Row]) -> None:
    """The found plugins: name, kinds, whether it is installed, summary, and the line that installs it."""
    for row in rows:
        state = f"installed: {row.installed}" if row.installed else "not installed"
        click.echo(f"{click.style(row.plugin.name, bold=True)}  {_kinds(row)}  ({state})")
        if row.plugin.summary:
            click.echo(click.wrap_text(row.plugin.summary, width(), "  ", "  "))
        if row.install is not None:
            click.echo(f"  {click.style(row.install, fg='cyan')}")


def width() -> int:
    return min(Console().width, 100)


def _kinds(row: Row) -> str:
    """`quantizer gptq`, or `adapter (38), exporter peft`."""
    names = {k: [c.name for c in row.plugin.components if c.kind == k] for k in row.plugin.kinds}
    return ", ".join(f"{k} {n[0]}" if len(n) == 1 else f"{k} ({len(n)})" for k, n in names.items())
