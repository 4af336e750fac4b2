"""`smollm3 config show|validate|presets|schema`. Does not import torch."""

from __future__ import annotations

import json
from typing import Any

import click

from smollm3_finetune.cli.options import debug_option, plugin_options, run_options
from smollm3_finetune.cli.parsing import CommandGroup, RowsCommand
from smollm3_finetune.cli.session import find_plugins, load_configuration, prints_result


@click.group(
    cls=CommandGroup,
    for_path="smollm3 config validate --config",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def config() -> None:
    """Show or check a configuration, list presets, or print the JSON schema."""


@config.command(cls=RowsCommand, short_help="Print a configuration with the origin of each value.")
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print values and origins as JSON.")
def show(as_json: bool, **values: Any) -> None:
    """Print the configuration that the same options set in `train`, with the origin of each value.

    Components are not looked up. To see them and the values that they suggest: `smollm3 train --dry-run`.
    """
    from smollm3_finetune.cli.output.configuration import with_origins
    from smollm3_finetune.config.load import as_dict

    loaded = load_configuration(values)
    if as_json:
        click.echo(json.dumps({"config": as_dict(loaded.config), "origins": loaded.origins}, ensure_ascii=False))
    else:
        click.echo(with_origins(loaded.config, loaded.origins))


@config.command(cls=RowsCommand, short_help="Check a configuration without loading a model.")
@run_options
@prints_result
def validate(**values: Any) -> str:
    """Check a configuration as far as possible without loading a model.

    Checks the names and options of components, whether they work together, the required packages, and the rows.
    """
    from smollm3_finetune.api import BuildContext, Purpose
    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.data.counts import counted
    from smollm3_finetune.model.device import check_device, guess_device
    from smollm3_finetune.progress import Silent
    from smollm3_finetune.runs.rundir import RunDir
    from smollm3_finetune.runs.start_from import started
    from smollm3_finetune.train.plan import plan_run

    loaded = load_configuration(values)
    start = started(loaded)
    loaded = loaded if start is None else start.loaded
    run = loaded.config
    check_device(run.device)
    registry = find_plugins([*run.plugins, *values["plugin"]], values["no_plugins"])
    RunDir.fresh(run.output, "validate")
    context = BuildContext(
        purpose=Purpose.TRAIN,
        device=guess_device() if run.device == "auto" else run.device,
        dtype="float32" if run.dtype == "auto" else run.dtype,
        seed=run.seed,
        cache=Cache.default(),
        progress=Silent(),
    )
    plan = plan_run(registry, loaded, lambda: context, start=start)
    assert plan.model.adapter is not None
    return (
        f"ok: model {plan.model.ref}, quantizer {plan.model.quantizer.component.spec.name}, "
        f"adapter {plan.model.adapter.component.spec.name}; "
        f"{counted(sum(plan.survey.train), 'training row')}, {counted(sum(plan.survey.held_out), 'held-out row')}"
    )


@config.command(short_help="List the presets, or print one with its sources.")
@click.argument("name", required=False)
@debug_option
def presets(name: str | None) -> None:
    """List the presets: published settings for --preset. With NAME, print its file, which cites the sources."""
    from smollm3_finetune.config.preset import preset_text
    from smollm3_finetune.config.preset_names import preset_summaries

    if name is not None:
        click.echo(preset_text(name), nl=False)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("preset", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for preset, summary in preset_summaries().items():
        table.add_row(preset, Text(summary))
    Console().print(table)


@config.command(short_help="Print the JSON schema of run.yaml.")
@click.option("--sweep", "of_sweep", is_flag=True, help="The schema of the file of a sweep.")
@plugin_options
def schema(plugin: tuple[str, ...], no_plugins: bool, of_sweep: bool) -> None:
    """Print the JSON schema of run.yaml for editors, with the options of all installed components."""
    registry = find_plugins(plugin, no_plugins)
    if of_sweep:
        from smollm3_finetune.sweep.schema import sweep_schema

        click.echo(json.dumps(sweep_schema(registry), indent=2))
        return
    from smollm3_finetune.components.json_schema import run_schema

    click.echo(json.dumps(run_schema(registry), indent=2))
