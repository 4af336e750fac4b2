"""The group `smollm3 runs`; each of its commands is imported when it is used. Does not import torch."""

from __future__ import annotations

import click

from smollm3_finetune.cli.parsing import LazyGroup

RUNS_COMMANDS = {
    "list": ("smollm3_finetune.cli.commands.runs_list:list_runs", "List runs: state, steps, losses, verdict, size."),
    "show": ("smollm3_finetune.cli.commands.runs_show:show", "Show a run: curves, configuration, versions, commands."),
    "compare": ("smollm3_finetune.cli.commands.runs_compare:compare", "Compare the configurations and losses of runs."),
    "report": ("smollm3_finetune.cli.commands.runs_report:report", "Write an HTML page about one or several runs."),
    "prune": ("smollm3_finetune.cli.commands.runs_prune:prune", "Delete checkpoints that are no longer needed."),
}


@click.group(
    cls=LazyGroup,
    table=RUNS_COMMANDS,
    for_path="smollm3 runs show",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def runs() -> None:
    """List, show, compare, report on or prune runs."""
