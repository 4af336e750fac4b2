"""`smollm3 sweep run` and `smollm3 sweep resume`"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.options import F, config_flag, plugin_options
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import find_plugins, flag_settings, prints_result, result_stream, say_warning

if TYPE_CHECKING:
    from smollm3_finetune.sweep.sweep import Sweep

RUN_EXAMPLES = """\b
Examples:
  smollm3 sweep run sweep.yaml --dry-run
  smollm3 sweep run sweep.yaml
  smollm3 sweep run sweep.yaml --launcher torchrun --launcher-opt processes=2
"""
HELP = {"help_option_names": ["-h", "--help"]}


def _options(f: F) -> F:
    f = plugin_options(f)
    f = click.option("--json", "as_json", is_flag=True, help="Print the plan or the trials as JSON.")(f)
    f = click.option("--dry-run", is_flag=True, help="Check every trial and show the plan; write nothing.")(f)
    f = click.option("--launcher-opt", multiple=True, metavar="K=V", help="Set an option of the launcher.")(f)
    f = config_flag("launcher", "NAME")(f)
    return click.argument("file", metavar="FILE")(f)


@click.command("run", cls=HintingCommand, context_settings=HELP, epilog=RUN_EXAMPLES)
@_options
@prints_result
def run(file: str, dry_run: bool, as_json: bool, **values: Any) -> None:
    """Run the trials of a file one after the other, each in a process of its own. All trials are checked first.

    A trial that finished is kept as long as its configuration, rows and model are unchanged; an interrupted one is
    continued. A trial that fails is recorded, and the others run. A launcher that sweeps, such as ray, decides which
    trials run at the same time.
    """
    _run(file, must_exist=False, dry_run=dry_run, as_json=as_json, values=values)


@click.command("resume", cls=HintingCommand, context_settings=HELP)
@_options
@prints_result
def resume(file: str, dry_run: bool, as_json: bool, **values: Any) -> None:
    """Continue a sweep that was interrupted: as `run`, but a sweep that was never begun is an error.

    A trial that finished is not run again; an interrupted one continues from its newest checkpoint, and one that failed
    is tried again.
    """
    _run(file, must_exist=True, dry_run=dry_run, as_json=as_json, values=values)


def opened(file: str, values: dict[str, Any]) -> Sweep:
    """The sweep of a file, with the plugins and the launcher of the command line."""
    from smollm3_finetune.progress import for_stream
    from smollm3_finetune.sweep.sweep import open_sweep

    return open_sweep(
        file,
        settings=flag_settings(values),
        plugins=values["plugin"],
        no_plugins=values["no_plugins"],
        find_plugins=lambda names: find_plugins(names, values["no_plugins"]),
        progress=for_stream(),
        warn=say_warning,
    )


def _run(file: str, *, must_exist: bool, dry_run: bool, as_json: bool, values: dict[str, Any]) -> None:
    from smollm3_finetune.cli.commands.pipeline_hints import keys_in_hints
    from smollm3_finetune.cli.output.sweep import as_dict, shown_plan, shown_status
    from smollm3_finetune.sweep import run as running

    with keys_in_hints():
        sweep = opened(file, values)
        if dry_run:
            plans = running.dry_run(sweep, must_exist=must_exist)
            click.echo(shown_plan(sweep, plans, as_json=as_json), file=result_stream())
            return
        from smollm3_finetune.train import display

        trials = running.run_sweep(sweep, display.for_stream(), must_exist=must_exist)
        status = sweep.status()
    text = json.dumps(as_dict(sweep, status), ensure_ascii=False) if as_json else shown_status(sweep, status)
    click.echo(text, file=result_stream())
    running.check_failures(sweep, trials)
