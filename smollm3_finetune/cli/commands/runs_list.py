"""`smollm3 runs list`. Does not import torch."""

from __future__ import annotations

import json

import click

from smollm3_finetune.cli.options import debug_option


@click.command("list")
@click.option("--runs", metavar="DIR", help="Folder of the runs; default: runs/.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def list_runs(runs: str | None, as_json: bool) -> None:
    """List the runs below runs/, newest first."""
    from smollm3_finetune.runs.find import find_runs, runs_folder
    from smollm3_finetune.runs.summary import RunSummary

    found = [RunSummary.of(run) for run in find_runs(runs_folder(runs))]
    found.sort(key=lambda run: run.started.timestamp() if run.started else 0.0, reverse=True)
    if as_json:
        click.echo(json.dumps([run.as_dict() for run in found], indent=2, ensure_ascii=False))
        return
    for run in found:
        click.echo(f"{run.path}  {run.state}")
