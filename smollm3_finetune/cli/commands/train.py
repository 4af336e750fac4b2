"""`smollm3 train`"""

from __future__ import annotations

import json
import time
from pathlib import Path
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
@click.option("--launched", hidden=True, metavar="RUN", help="Take part in a run that a launcher started.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@component_help_option
@click.pass_context
@prints_report
def train(
    ctx: click.Context, /, resume: str | None, dry_run: bool, launched: str | None, as_json: bool, **values: Any
) -> str | None:
    """Fine-tune a model and save the adapter; report held-out loss and a sample answer before and after training.

    Without arguments, trains a small built-in model on a small built-in dataset in under a minute, without network
    access.
    """
    began = time.monotonic()
    if launched is not None:
        from smollm3_finetune.launching.attached import run_launched

        run_launched(Path(launched))
        return None
    from smollm3_finetune.components.registry import once
    from smollm3_finetune.launching.joining import join
    from smollm3_finetune.launching.start import carry_out, remember_memory
    from smollm3_finetune.progress import for_stream
    from smollm3_finetune.train.distributed.processes import is_main_process, shut_down_processes
    from smollm3_finetune.train.start import plan_training

    asked: dict[str, Any] = {
        "config_file": values["config_file"],
        "resume": resume,
        "plugins": values["plugin"],
        "find_plugins": once(lambda names: find_plugins(names, values["no_plugins"])),
        "progress": for_stream(),
    }
    settings = flag_settings(values)
    if join(settings, **asked, dry_run=dry_run):
        return None
    planned = plan_training(settings, **asked, warn=say_warning)
    if dry_run:
        from smollm3_finetune.cli.output.run import shown_plan

        return shown_plan(planned, as_json=as_json)
    from smollm3_finetune.api import Submitted
    from smollm3_finetune.train import display

    handed = {
        "no_plugins": values["no_plugins"],
        "debug": ctx.find_root().obj is not None and ctx.find_root().obj.debug,
    }
    done = carry_out(planned, display.for_stream(), asked["progress"], began, **handed)
    shut_down_processes()
    if not is_main_process():
        return None
    if isinstance(done, Submitted):
        from smollm3_finetune.cli.output.run import shown_submitted

        return shown_submitted(done, planned.run.path, as_json=as_json)
    remember_memory(planned, done)
    if as_json:
        return json.dumps(done, ensure_ascii=False)
    from smollm3_finetune.cli.output.run import shown_report

    return shown_report(done, planned.plugins)
