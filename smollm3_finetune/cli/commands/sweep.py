"""The group `smollm3 sweep`; each of its commands is imported when it is used. Does not import torch."""

from __future__ import annotations

import os
import shlex

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


class SweepGroup(LazyGroup):
    """A group that says which command takes a file."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.table and os.path.isfile(args[0]):
            hint = f"smollm3 sweep run {shlex.quote(args[0])}"
            raise click.UsageError(f"No such command {args[0]!r}\n  hint: {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=SweepGroup, table=SWEEP_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def sweep() -> None:
    """Train one run for each combination of values, from one file, and compare them."""
