"""`smollm3 pipeline status`. Does not import torch."""

from __future__ import annotations

import json
from typing import Any

import click

from smollm3_finetune.cli.commands.pipeline_run import opened
from smollm3_finetune.cli.options import plugin_options
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import prints_result


@click.command("status", cls=HintingCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plugin_options
@prints_result
def status(file: str, as_json: bool, **values: Any) -> str:
    """Show each stage of a pipeline: state, directory, time, held-out loss, verdict, and what resume would do.

    The state is new, running, interrupted, failed (an error ended the stage), finished, or outdated (finished, but
    something that it depends on has changed). Nothing is written.
    """
    from smollm3_finetune.cli.commands.pipeline_hints import keys_in_hints
    from smollm3_finetune.cli.output.pipeline import shown_status
    from smollm3_finetune.pipeline.status import as_dict, status_of

    with keys_in_hints():
        pipeline = opened(file, values)
        stages = status_of(pipeline)
    if as_json:
        return json.dumps(as_dict(pipeline, stages), indent=2, ensure_ascii=False)
    return shown_status(pipeline, stages)
