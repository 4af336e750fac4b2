"""`smollm3 train`"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.options import run_options
from smollm3_finetune.cli.session import find_plugins, flag_settings, load_configuration, prints_result, say_warning

if TYPE_CHECKING:
    from smollm3_finetune.api import BuildContext
    from smollm3_finetune.config.load import LoadedConfig

EXAMPLES = """\b
Examples:
  smollm3 train
  smollm3 train --model HuggingFaceTB/SmolLM3-3B --quant bnb-4bit --data rows.jsonl
  smollm3 train --config run.yaml --adapter dora --adapter-opt rank=32
  smollm3 train --quant bnb-4bit --help     (also shows the options of that quantizer)
"""


def _help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Show help after all other options are parsed, so that it includes the options of the named components."""
    if value:
        from smollm3_finetune.cli.output.component_help import component_help

        click.echo(ctx.get_help() + "\n\n" + component_help(ctx.params))
        ctx.exit()


@click.command(epilog=EXAMPLES, add_help_option=False)
@run_options
@click.option("--resume", metavar="RUN", help="Continue an interrupted run from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Check everything and show the plan; load no weights, write no files.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@click.option("-h", "--help", "show_help", is_flag=True, expose_value=False, callback=_help,
              help="Show this message and exit.")  # fmt: skip
@click.pass_context
@prints_result
def train(ctx: click.Context, /, resume: str | None, dry_run: bool, as_json: bool, **values: Any) -> str | None:
    """Fine-tune a model and save the adapter; report held-out loss and a sample answer before and after training.

    Without arguments, trains a small built-in model on a small built-in dataset in under a minute, without network
    access.
    """
    began = time.monotonic()
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.runs.resume import resumed_configuration
    from smollm3_finetune.runs.rundir import RunDir
    from smollm3_finetune.train.distributed.processes import is_main_process, shut_down_processes

    run = RunDir.existing(resume) if resume is not None else None
    if run is not None and values["config_file"] is not None:
        raise ConfigError("--resume uses the configuration of the run, so --config cannot be used")
    loaded = resumed_configuration(run, flag_settings(values), values["plugin"]) if run else load_configuration(values)
    named = [*_saved_plugins(loaded, run is not None), *values["plugin"]]
    registry = find_plugins(named, values["no_plugins"])
    if run is None:
        title = f"{loaded.config.model.rpartition('/')[2]}-{_title(loaded)}"
        run = RunDir.fresh(loaded.config.output, title, must_be_empty=is_main_process())
    from smollm3_finetune.model.load import build_context
    from smollm3_finetune.progress import for_stream

    asked = loaded.config

    def make_context() -> BuildContext:
        from smollm3_finetune.api import Purpose

        return build_context(Purpose.TRAIN, asked.device, asked.dtype, asked.seed, progress=for_stream())

    from smollm3_finetune.train.plan import plan_run

    checkpoint = run.last_checkpoint() if resume is not None else None
    plan = plan_run(registry, loaded, make_context, checkpoint.path if checkpoint is not None else None)
    if resume is not None:
        from smollm3_finetune.runs.resume import compare_versions

        for warning in compare_versions(run, plan.components(), registry):
            say_warning(warning)
    if dry_run:
        from smollm3_finetune.cli.output.run import shown_plan

        return shown_plan(plan, run, as_json=as_json)
    from smollm3_finetune.model_files.imports import import_for_training
    from smollm3_finetune.train import display
    from smollm3_finetune.train.run import train as carry_out

    import_for_training()
    report = carry_out(plan, registry, run, display.for_stream(), checkpoint, began)
    shut_down_processes()
    if not is_main_process():
        return None
    if as_json:
        return json.dumps(report, ensure_ascii=False)
    from smollm3_finetune.cli.output.run import shown_report

    return shown_report(report, named)


def _title(loaded: LoadedConfig) -> str:
    from smollm3_finetune.config.schema import DEFAULT_ADAPTER

    parts = (loaded.config.quant.name, loaded.config.adapter.name or DEFAULT_ADAPTER)
    return "-".join(p.rpartition(":")[2] for p in parts if p)


def _saved_plugins(loaded: LoadedConfig, resuming: bool) -> tuple[str, ...]:
    """The `plugins` of a configuration. A resumed run keeps only its `no:NAME` entries: `-p` must name files again."""
    return tuple(p for p in loaded.config.plugins if not resuming or p.startswith("no:"))
