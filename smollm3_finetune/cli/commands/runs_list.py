"""`smollm3 runs list`. Does not import torch."""

from __future__ import annotations

import json

import click

from smollm3_finetune.cli.options import debug_option

STATES = ("running", "finished", "interrupted", "failed", "damaged")
"""Those of `runs.summary`, which help does not import."""

EXAMPLES = """\b
Examples:
  smollm3 runs list --sort after
  smollm3 runs list --filter adapter=full --filter train.learning_rate=1e-4
  smollm3 runs list --state failed --state interrupted
"""

runs_option = click.option("--runs", metavar="DIR", help="Folder of the runs, searched at any depth; default: runs/.")
filter_option = click.option(
    "--filter", "filters", multiple=True, metavar="KEY=VALUE",
    help="Only runs with this value: name, state, model, loader, quantizer, adapter, objective, optimizer, data, "
    "verdict, sweep, pipeline, or a configuration key such as train.learning_rate. * and ? are wildcards. Repeat the "
    "option for several conditions.",
)  # fmt: skip
state_option = click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES),
    help="Only runs in this state. Repeat the option for several states.",
)  # fmt: skip


@click.command("list", epilog=EXAMPLES)
@runs_option
@state_option
@filter_option
@click.option(
    "--sort", metavar="KEY", default="started", show_default=True,
    help="Order: started, finished, size, steps or seconds, largest first; before, after or change (held-out loss), "
    "lowest first; or a key of --filter.",
)  # fmt: skip
@click.option("--reverse", is_flag=True, help="Reverse the order.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def list_runs(
    runs: str | None, states: tuple[str, ...], filters: tuple[str, ...], sort: str, reverse: bool, as_json: bool
) -> None:
    """List runs, newest first: state, held-out loss before and after training, verdict, steps, size, components, data.

    The state is running, finished, interrupted, failed (an error ended the run), or damaged (a file of it cannot be
    read). The table has as many columns as fit the terminal; --json has all values.
    """
    from smollm3_finetune.runs.find import find_runs, runs_folder
    from smollm3_finetune.runs.select import matching, ordered
    from smollm3_finetune.runs.summary import RunSummary

    folder = runs_folder(runs)
    everything = [RunSummary.of(run) for run in find_runs(folder)]
    found = ordered(matching(everything, filters, states), sort, reverse=reverse)
    if as_json:
        about = {"folder": str(folder), "runs": [run.as_dict() for run in found]}
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    if not everything:
        click.echo(f"{folder} has no runs; to start one: smollm3 train")
        return
    from smollm3_finetune.cli.output.characters import line_width
    from smollm3_finetune.cli.output.runs_table import shown_runs

    click.echo(shown_runs(found, folder, line_width(), len(everything) - len(found)))
