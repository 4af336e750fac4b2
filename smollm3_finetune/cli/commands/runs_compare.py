"""`smollm3 runs compare`. Does not import torch."""

from __future__ import annotations

import json

import click

from smollm3_finetune.cli.commands.runs_list import runs_option
from smollm3_finetune.cli.options import debug_option


@click.command("compare")
@click.argument("named", metavar="RUN...", nargs=-1)
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def compare(named: tuple[str, ...], runs: str | None, as_json: bool) -> None:
    """Compare runs: the values of their configurations that differ, held-out losses with intervals, and curves.

    RUN is a run directory, or its name in runs/. At least two are needed.
    """
    from smollm3_finetune.runs.comparison import RunComparison, check_several
    from smollm3_finetune.runs.find import named_run, runs_folder

    folder = runs_folder(runs)
    found = [named_run(text, folder, "smollm3 runs compare") for text in named]
    check_several(found)
    comparison = RunComparison.of(found)
    if as_json:
        click.echo(json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False))
        return
    from smollm3_finetune.cli.output.characters import line_width
    from smollm3_finetune.cli.output.runs_compare import shown_comparison

    click.echo(shown_comparison(comparison, min(line_width(), 160)))
