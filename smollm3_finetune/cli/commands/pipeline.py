"""The group `smollm3 pipeline`; each of its commands is imported when it is used. Does not import torch."""

from __future__ import annotations

import click

from smollm3_finetune.cli.parsing import LazyGroup

PIPELINE_COMMANDS = {
    "run": ("smollm3_finetune.cli.commands.pipeline_run:run", "Run the stages of a file; keep those up to date."),
    "resume": ("smollm3_finetune.cli.commands.pipeline_run:resume", "Continue a pipeline that was interrupted."),
    "status": (
        "smollm3_finetune.cli.commands.pipeline_status:status",
        "Show each stage: state, losses, and what resume would do.",
    ),
}


@click.group(
    cls=LazyGroup,
    table=PIPELINE_COMMANDS,
    for_path="smollm3 pipeline run",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def pipeline() -> None:
    """Train, merge, quantize and evaluate in stages that one file describes."""
