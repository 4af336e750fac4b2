"""`smollm3 sweep status`. Does not import torch."""

from __future__ import annotations

import json
from typing import Any

import click

from smollm3_finetune.cli.commands.sweep_run import opened
from smollm3_finetune.cli.options import plugin_options
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import prints_result


@click.command("status", cls=HintingCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plugin_options
@prints_result
def status(file: str, as_json: bool, **values: Any) -> str:
    """Show each trial of a sweep: state, steps, held-out loss with its interval, and the difference to the best trial.

    The state is new, running, submitted (as a job), interrupted, failed (an error ended the trial), stopped (early, by
    the launcher), or finished. Nothing is written.
    """
    from smollm3_finetune.cli.commands.pipeline_hints import keys_in_hints
    from smollm3_finetune.cli.output.sweep import as_dict, shown_status

    with keys_in_hints():
        sweep = opened(file, values)
        found = sweep.status()
    return json.dumps(as_dict(sweep, found), indent=2, ensure_ascii=False) if as_json else shown_status(sweep, found)
