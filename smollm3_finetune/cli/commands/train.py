"""`smollm3 train`"""

from __future__ import annotations

import json
import time
from typing import Any

import click

from smollm3_finetune.cli.options import run_options
from smollm3_finetune.cli.parsing import RowsCommand, component_help_option
from smollm3_finetune.cli.session import find_plugins, flag_settings, prints_report, say_warning

EXAMPLES = """\b
Examples:
  smollm3 train
  smollm3 train --model HuggingFaceTB/SmolLM3-3B --quant bnb-4bit --data rows.jsonl
  smollm3 train --config run.yaml --adapter dora --adapter-opt rank=32
  smollm3 train --quant bnb-4bit --help  # also shows the options of that quantizer
"""


@click.command(cls=RowsCommand, epilog=EXAMPLES, add_help_option=False)
@run_options
@click.option(
    "--resume", metavar="RUN",
    help="Continue an interrupted run from its newest checkpoint; if all steps are done, write the missing adapter or "
    "report. auto: the newest unfinished run of the same configuration, or a new run if there is none.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything and show the plan; load no weights, write no files.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@component_help_option
@click.pass_context
@prints_report
def train(ctx: click.Context, /, resume: str | None, dry_run: bool, as_json: bool, **values: Any) -> str | None:
    """Fine-tune a model and save the adapter; report held-out loss and a sample answer before and after training.

    Without arguments, trains a small built-in model on a small built-in dataset in under a minute, without network
    access.
    """
    began = time.monotonic()
    from smollm3_finetune.progress import for_stream
    from smollm3_finetune.train.distributed.processes import is_main_process, shut_down_processes
    from smollm3_finetune.train.start import plan_training

    planned = plan_training(
        flag_settings(values),
        config_file=values["config_file"],
        resume=resume,
        plugins=values["plugin"],
        find_plugins=lambda names: find_plugins(names, values["no_plugins"]),
        progress=for_stream(),
        warn=say_warning,
    )
    if dry_run:
        from smollm3_finetune.cli.output.run import shown_plan

        return shown_plan(planned, as_json=as_json)
    from smollm3_finetune.model_files.imports import import_for_training
    from smollm3_finetune.train import display

    import_for_training()
    report = planned.train(display.for_stream(), began)
    shut_down_processes()
    if not is_main_process():
        return None
    from smollm3_finetune.memory.predictor import remember

    remember(planned.plan, planned.registry, report)
    if as_json:
        return json.dumps(report, ensure_ascii=False)
    from smollm3_finetune.cli.output.run import shown_report

    return shown_report(report, planned.plugins)
