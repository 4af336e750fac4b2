"""`smollm3 pipeline run` and `smollm3 pipeline resume`"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.options import F, plugin_options
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import find_plugins, prints_report, say_warning

if TYPE_CHECKING:
    from smollm3_finetune.pipeline.run import Pipeline

RUN_EXAMPLES = """\b
Examples:
  smollm3 pipeline run pipeline.yaml --dry-run
  smollm3 pipeline run pipeline.yaml
  smollm3 pipeline run pipeline.yaml --again sft
"""
HELP = {"help_option_names": ["-h", "--help"]}


def _options(f: F) -> F:
    f = plugin_options(f)
    f = click.option("--json", "as_json", is_flag=True, help="Print the plan or the state of the stages as JSON.")(f)
    f = click.option("--dry-run", is_flag=True, help="Check every stage and show the plan; write nothing.")(f)
    return click.argument("file", metavar="FILE")(f)


@click.command("run", cls=HintingCommand, context_settings=HELP, epilog=RUN_EXAMPLES)
@_options
@click.option(
    "--again", multiple=True, metavar="STAGE",
    help="Run this stage again although nothing has changed, in a new directory. Repeat it for several stages.",
)  # fmt: skip
@prints_report
def run(file: str, again: tuple[str, ...], dry_run: bool, as_json: bool, **values: Any) -> str:
    """Run the stages of a file in order. The whole file is checked first.

    A finished stage is kept if its configuration, rows, model and the stage before it are unchanged; otherwise it is
    run again in a new directory, and so are the stages that depend on it. Nothing is overwritten. An interrupted stage
    is continued.
    """
    return _run(file, again, must_exist=False, dry_run=dry_run, as_json=as_json, values=values)


@click.command("resume", cls=HintingCommand, context_settings=HELP)
@_options
@prints_report
def resume(file: str, dry_run: bool, as_json: bool, **values: Any) -> str:
    """Continue a pipeline that was interrupted: as `run`, but a pipeline that was never begun is an error.

    A train stage continues from its newest checkpoint; other stages are written whole, and start again.
    """
    return _run(file, (), must_exist=True, dry_run=dry_run, as_json=as_json, values=values)


def opened(file: str, values: dict[str, Any]) -> Pipeline:
    """The pipeline of a file, with the plugins of the command line."""
    from smollm3_finetune.pipeline.run import open_pipeline
    from smollm3_finetune.progress import for_stream

    return open_pipeline(
        file,
        plugins=values["plugin"],
        no_plugins=values["no_plugins"],
        find_plugins=lambda names: find_plugins(names, values["no_plugins"]),
        progress=for_stream(),
        warn=say_warning,
    )


def _run(
    file: str, again: tuple[str, ...], *, must_exist: bool, dry_run: bool, as_json: bool, values: dict[str, Any]
) -> str:
    from smollm3_finetune.cli.commands.pipeline_hints import keys_in_hints
    from smollm3_finetune.cli.output.pipeline import shown_plan, shown_status
    from smollm3_finetune.pipeline import run as running
    from smollm3_finetune.pipeline.status import as_dict, status_of

    with keys_in_hints():
        pipeline = opened(file, values)
        if dry_run:
            plans = running.dry_run(pipeline, again, must_exist=must_exist)
            return shown_plan(pipeline, plans, as_json=as_json)
        from smollm3_finetune.train import display

        running.run_pipeline(pipeline, display.for_stream(), again=again, must_exist=must_exist)
        stages = status_of(pipeline)
    if as_json:
        return json.dumps(as_dict(pipeline, stages), ensure_ascii=False)
    return shown_status(pipeline, stages)
