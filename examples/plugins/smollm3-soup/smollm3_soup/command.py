"""The command. It is imported for its help too: import torch and other large libraries inside the function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from smollm3_finetune.api import DataError

if TYPE_CHECKING:
    from smollm3_finetune.api import CommandTools


@click.command(short_help="Show the lowest loss of a run, and its step.")
@click.argument("run")
@click.option("--key", default="loss", show_default=True, help="The metric whose lowest value is shown.")
@click.pass_obj
def soup(tools: CommandTools, run: str, key: str) -> None:
    """Show the lowest loss of RUN, and its step.

    `tools` does what core does for its own commands: it opens runs and models, and starts runs. Errors of
    smollm3_finetune.api are shown in one sentence.
    """
    rows = [row for row in tools.run(run).metrics() if isinstance(row.get(key), int | float)]
    if not rows:
        raise DataError(f"the run {run} has no values of {key!r}", hint="--key loss")
    lowest = min(rows, key=lambda row: float(row[key]))
    tools.say(f"{len(rows)} values")  # on standard error
    tools.print(f"step {lowest['step']}: {key} {lowest[key]:.4f}")  # the result, on standard output
