"""`smollm3 plugins uninstall`: uninstall plugins, with pip or uv. Does not import torch."""

from __future__ import annotations

import json
import sys

import click

from smollm3_finetune.cli.options import debug_option


@click.command("uninstall", short_help="Uninstall plugins, with pip or uv.")
@click.argument("plugins", nargs=-1, required=True, metavar="NAME…")
@click.option("--dry-run", is_flag=True, help="Show what would be uninstalled, without doing it.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask; required without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run.")
@debug_option
def uninstall(plugins: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Uninstall plugins, and name what stays that only they required.

    NAME is a distribution, a plugin or one of its components. Other distributions, and smollm3-finetune itself, are
    refused. Runs and adapters stay; they need the plugin again when they are used.
    """
    from smollm3_finetune.cli.commands.plugins_install import needs_confirmation
    from smollm3_finetune.cli.output.installing import print_removal, removal_data
    from smollm3_finetune.components.snapshot import read_snapshot
    from smollm3_finetune.installing.choose import choose_installer
    from smollm3_finetune.installing.environment import check_environment, installed
    from smollm3_finetune.installing.index import embedded_index
    from smollm3_finetune.installing.search import with_installed
    from smollm3_finetune.installing.uninstall import plan_removal
    from smollm3_finetune.installing.uninstall import uninstall as remove

    if as_json and not yes and not dry_run:
        raise needs_confirmation("plugins uninstall")
    check_environment()
    found, offered = installed(), read_snapshot()
    known = with_installed(embedded_index(), found, offered.components if offered is not None else ())
    removal = plan_removal(plugins, choose_installer(), found, known)
    if not as_json and (dry_run or not yes):
        print_removal(removal, "would uninstall")
    if not dry_run:
        if not yes:
            if not sys.stdin.isatty():
                raise needs_confirmation("plugins uninstall")
            names = ", ".join(one.title for one in removal.distributions)
            click.confirm(f"Uninstall {names} with {removal.installer.name}?", abort=True, err=True)
        remove(removal)
    if as_json:
        click.echo(json.dumps(removal_data(removal, dry_run), indent=2, ensure_ascii=False))
    elif not dry_run:
        print_removal(removal, "uninstalled")
