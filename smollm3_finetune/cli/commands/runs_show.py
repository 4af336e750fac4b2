"""`smollm3 runs show`. Does not import torch."""

from __future__ import annotations

import json

import click

from smollm3_finetune.cli.commands.runs_list import runs_option
from smollm3_finetune.cli.options import debug_option


@click.command("show")
@click.argument("run")
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def show(run: str, runs: str | None, as_json: bool) -> None:
    """Show everything about a run: curves, configuration, versions, warnings, and the commands that use it.

    RUN is a run directory, or its name in runs/.
    """
    from smollm3_finetune.runs.details import RunDetails
    from smollm3_finetune.runs.find import named_run, runs_folder

    details = RunDetails.of(named_run(run, runs_folder(runs), "smollm3 runs show"))
    if as_json:
        click.echo(json.dumps(details.as_dict(), indent=2, ensure_ascii=False))
        return
    from smollm3_finetune.cli.output.characters import line_width
    from smollm3_finetune.cli.output.runs_show import shown_run

    click.echo(shown_run(details, min(line_width(), 120)))
