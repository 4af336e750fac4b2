"""`smollm3 plugins install|upgrade`: install plugins into this environment, with pip or uv. Does not import torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smollm3_finetune.cli.options import debug_option

if TYPE_CHECKING:
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.installing.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])
EXAMPLES = """
\b
Examples:
  smollm3 plugins install acme-quant
  smollm3 plugins install acme-quant==1.2 --yes
  smollm3 plugins install acme_quant-1.2-py3-none-any.whl
  smollm3 plugins install ./my-plugin
  smollm3 plugins install https://example.org/acme_quant-1.2-py3-none-any.whl
"""


def source_options(f: F) -> F:
    """The options that say where distributions come from, and how the command asks and answers."""
    f = debug_option(f)
    f = click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run.")(f)
    f = click.option("--yes", "-y", is_flag=True, help="Do not ask; required without a terminal.")(f)
    f = click.option("--dry-run", is_flag=True, help="Show what would change, without changing it.")(f)
    f = click.option(
        "--allow-change", multiple=True, metavar="NAME",
        help="Also replace this installed distribution, such as torch. May be repeated.",
    )(f)  # fmt: skip
    f = click.option("--offline", is_flag=True, help="Use no package index, only --find-links.")(f)
    f = click.option("--index-url", metavar="URL", help="Package index; passed to pip or uv.")(f)
    f = click.option(
        "--find-links", multiple=True, metavar="DIR|URL", help="Folder or page of wheels; passed to pip or uv."
    )(f)
    return click.option(
        "--index", metavar="FILE|URL", help="A newer index of plugins, as JSON; default: $SMOLLM3_PLUGIN_INDEX."
    )(f)


@click.command("install", short_help="Install plugins, with pip or uv.", epilog=EXAMPLES)
@click.argument("plugins", nargs=-1, required=True, metavar="NAME|FILE|DIR|URL…")
@click.option("--copy", "copies", is_flag=True, help="Install a directory as a copy; default: editable.")
@source_options
def install(
    plugins: tuple[str, ...], copies: bool, index: str | None, find_links: tuple[str, ...], index_url: str | None,
    offline: bool, allow_change: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Install plugins into this environment with pip or uv, and check them.

    NAME is a distribution, or a component that one offers. Everything that is installed keeps its version,
    unless --allow-change names it. What would change is shown first. The exit code is 7 if an installed plugin fails
    its checks.
    """
    from smollm3_finetune.installing.choose import choose_installer
    from smollm3_finetune.installing.environment import check_environment, installed, repository
    from smollm3_finetune.installing.index import plugin_index
    from smollm3_finetune.installing.installer import Sources
    from smollm3_finetune.installing.plan import make_plan
    from smollm3_finetune.installing.requests import Parser

    _check_json(yes, as_json, dry_run, "plugins install")
    sources = Sources.of(index_url, find_links, offline)
    check_environment()
    known, installer, found = plugin_index(index), choose_installer(), installed()
    parser = Parser(index=known, found=found, repository=repository(), has_source=sources.names_any(installer),
                    named_source=sources.named, has_index=sources.names_index(installer),
                    folders=sources.folders(installer), copies=copies)  # fmt: skip
    requests = parser.parse_all(plugins)
    say(f"resolving with {installer.name} …")
    plan = make_plan(requests, installer, sources, found, known, allow_change)
    _carry_out(plan, {}, dry_run, yes, as_json)


@click.command("upgrade", short_help="Upgrade installed plugins, with pip or uv.")
@click.argument("plugins", nargs=-1, metavar="[NAME…]")
@source_options
def upgrade(
    plugins: tuple[str, ...], index: str | None, find_links: tuple[str, ...], index_url: str | None, offline: bool,
    allow_change: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Upgrade plugins to the newest versions that work with everything else that is installed.

    Without NAME, all plugins that came from a package index. Everything else keeps its version, unless --allow-change
    names it. What would change is shown first.
    """
    from smollm3_finetune.installing.choose import choose_installer
    from smollm3_finetune.installing.environment import check_environment, installed
    from smollm3_finetune.installing.index import plugin_index
    from smollm3_finetune.installing.installer import Sources
    from smollm3_finetune.installing.plan import make_plan
    from smollm3_finetune.installing.upgrade import upgrades

    _check_json(yes, as_json, dry_run, "plugins upgrade")
    sources = Sources.of(index_url, find_links, offline)
    check_environment()
    known, installer, found = plugin_index(index), choose_installer(), installed()
    has_source = bool(sources.find_links or sources.index_url)
    requests, left = upgrades(plugins, found, known, has_source, sources.names_index(installer),
                              sources.folders(installer))  # fmt: skip
    if not as_json:
        for name, why in left.items():
            click.echo(f"left out: {name} {why}")
    if not requests:
        click.echo("[]" if as_json else "there is no plugin to upgrade")
        return
    say(f"resolving with {installer.name} …")
    plan = make_plan(requests, installer, sources, found, known, allow_change, upgrade=True)
    _carry_out(plan, left, dry_run, yes, as_json)


def say(text: str) -> None:
    """Say what takes long, on standard error."""
    click.echo(text, err=True)


def _check_json(yes: bool, as_json: bool, dry_run: bool, command: str) -> None:
    """Raises ConfigError for `--json` without an answer: the command would have to ask."""
    if as_json and not yes and not dry_run:
        raise needs_confirmation(command)


def needs_confirmation(command: str) -> ConfigError:
    """The error of a command that has to ask, and nobody can answer."""
    from smollm3_finetune.errors import ConfigError

    return ConfigError(f"nothing was changed: {command} needs confirmation", hint="pass --yes, or --dry-run")


def _carry_out(plan: Plan, left: dict[str, str], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Show a plan, ask, install, check and report."""
    from smollm3_finetune.cli.output.installing import as_data, print_checks, print_plan
    from smollm3_finetune.errors import PluginError
    from smollm3_finetune.installing.install import install

    if not as_json:
        print_plan(plan)
        if not plan.changes and not plan.satisfied:
            click.echo("nothing to change: what was named is installed already")
    if dry_run or (not plan.changes and not plan.satisfied):
        if as_json:
            click.echo(json.dumps(as_data(plan, left, dry_run=dry_run), indent=2, ensure_ascii=False))
        return
    if plan.changes and not yes:
        if not sys.stdin.isatty():
            raise needs_confirmation("plugins upgrade" if plan.upgrades else "plugins install")
        count = f"{len(plan.changes)} distribution{'' if len(plan.changes) == 1 else 's'}"
        click.confirm(f"Install {count} with {plan.installer.name}?", abort=True, err=True)
    done = install(plan, say)
    if as_json:
        click.echo(json.dumps(as_data(plan, left, done=done), indent=2, ensure_ascii=False))
    else:
        print_checks(done.plugins)
    bad = [p for p in done.plugins if not p.ok]
    if bad:
        click.get_current_context().exit(PluginError.exit_code)
