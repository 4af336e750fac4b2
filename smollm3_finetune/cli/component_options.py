"""`--help` that also shows the options of the components that a command line names."""

from __future__ import annotations

import click

from smollm3_finetune.cli.options import F


def _component_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Show help after all other options are parsed, so that it includes the options of the named components."""
    if value:
        from smollm3_finetune.cli.output.component_help import component_help

        click.echo(ctx.get_help() + "\n\n" + component_help(ctx.params))
        ctx.exit()


def component_help_option(f: F) -> F:
    """`--help`, for a command with `run_options` and `add_help_option=False`."""
    return click.option(
        "-h", "--help", "show_help", is_flag=True, expose_value=False, callback=_component_help,
        help="Show this message and exit.",
    )(f)  # fmt: skip
