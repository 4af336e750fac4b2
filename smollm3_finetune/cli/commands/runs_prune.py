"""`smollm3 runs prune`. Does not import torch."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.commands.runs_list import filter_option, runs_option, state_option
from smollm3_finetune.cli.options import debug_option

if TYPE_CHECKING:
    from smollm3_finetune.runs.prune import Removal


@click.command("prune")
@runs_option
@click.option(
    "--keep-checkpoints", type=click.IntRange(min=0), metavar="N", default=0, show_default=True,
    help="Keep the N newest checkpoints of each finished run.",
)  # fmt: skip
@click.option("--older-than", metavar="TIME", help="Only runs that did not change for this long, such as 30d or 12h.")
@state_option
@filter_option
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, without deleting it.")
@click.option("--yes", "-y", is_flag=True, help="Delete without asking; required without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run.")
@debug_option
def prune(
    runs: str | None, keep_checkpoints: int, older_than: str | None, states: tuple[str, ...],
    filters: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Delete checkpoints of finished runs, and runs that failed or were interrupted before their first checkpoint.

    Adapters, reports, metrics and configurations are kept: a finished run without checkpoints can still be used, but
    not resumed. Runs that can be resumed, runs that are being trained, damaged runs, checkpoints from which another run
    started, and files that smollm3 did not write are never deleted. What would be deleted is shown first, with its
    size.
    """
    from smollm3_finetune import stopping
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.files.room import shown_size
    from smollm3_finetune.progress import for_stream
    from smollm3_finetune.runs.find import find_runs, runs_folder
    from smollm3_finetune.runs.prune import prunable, reason, remove, total
    from smollm3_finetune.runs.select import matching
    from smollm3_finetune.runs.summary import RunSummary

    folder = runs_folder(runs)
    age = float(stopping.seconds(older_than, "--older-than")) if older_than is not None else 0.0
    known = [RunSummary.of(run) for run in find_runs(folder)]
    found = matching(known, filters, states)
    removals, kept = prunable(found, keep_checkpoints=keep_checkpoints, older_than=age, known=known)
    if not as_json:
        if removals and not yes:
            click.echo("would delete:")
        for one in removals:
            click.echo(f"{one.run.path}  {shown_size(one.bytes)}  {reason(one)}")
        for run in kept:
            click.echo(f"kept: {run.run.path}: {run.reason}")
    if removals and not dry_run and not yes:
        if as_json or not sys.stdin.isatty():
            raise ConfigError("nothing was deleted: runs prune needs confirmation", hint="pass --yes")
        count = f"{len(removals)} {'run' if len(removals) == 1 else 'runs'}"
        click.confirm(f"Delete {shown_size(total(removals))} of {count}?", abort=True, err=True)
    gone: list[Removal] = list(removals) if dry_run else []
    refused: dict[Any, str] = {}
    if not dry_run:
        with for_stream().task("deleting", len(removals)) as task:
            for one in removals:
                problem = remove(one)
                if problem is None:
                    gone.append(one)
                else:
                    refused[one.run.path] = problem
                task.advance()
    if as_json:
        about = {
            "folder": str(folder), "dry_run": dry_run,
            "deleted": [{"run": str(r.run.path), "state": r.state, "paths": [str(p) for p in r.paths], "bytes": r.bytes}
                        for r in gone],
            "bytes": total(gone),
            "kept": [{"run": str(k.run.path), "reason": k.reason} for k in kept],
            "not_deleted": [{"run": str(path), "reason": why} for path, why in refused.items()],
        }  # fmt: skip
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    for path, why in refused.items():
        click.echo(f"not deleted: {path}: {why}", err=True)
    command = "would delete" if dry_run else "deleted"
    click.echo(f"{command} {shown_size(total(gone))} of {len(gone)} {'run' if len(gone) == 1 else 'runs'} in {folder}")
