"""The group `smollm3 sweep`; each of its commands is imported when it is used. Does not import torch."""

from __future__ import annotations

import click

from smollm3_finetune.cli.parsing import LazyGroup

SWEEP_COMMANDS = {
    "run": ("smollm3_finetune.cli.commands.sweep_run:run", "Run the trials of a file that are not finished."),
    "resume": ("smollm3_finetune.cli.commands.sweep_run:resume", "Continue a sweep that was interrupted."),
    "status": (
        "smollm3_finetune.cli.commands.sweep_status:status",
        "Show each trial: state, held-out loss, and how it compares with the best.",
    ),
}


@click.group(
    cls=LazyGroup,
    table=SWEEP_COMMANDS,
    for_path="smollm3 sweep run",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def sweep() -> None:
    """Train one run for each combination of values, from one file, and compare them."""
