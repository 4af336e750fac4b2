"""`smollm3 plugins new`: write a working plugin as a starting point. Does not import torch."""

from __future__ import annotations

import shlex

import click

from smollm3_finetune.cli.options import debug_option
from smollm3_finetune.cli.session import discovered

KINDS = (
    "loader", "quantizer", "adapter", "formatter", "objective", "evaluator", "exporter", "launcher", "optimizer",
    "tracker", "command",
)  # fmt: skip

EXAMPLES = """
\b
Examples:
  smollm3 plugins new adapter scale
  smollm3 plugins new quantizer my-int4 --output plugins/my-int4
  smollm3 plugins new formatter tickets --file
"""


@click.command("new", short_help="Create a plugin: a package, or a single file.", epilog=EXAMPLES)
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.argument("name")
@click.option("--output", metavar="PATH", help="Path to write to; default: smollm3-NAME, or NAME_KIND.py.")
@click.option("--file", "single", is_flag=True, help="Write a single file for -p instead of a package.")
@debug_option
def new(kind: str, name: str, output: str | None, single: bool) -> None:
    """Create a working plugin that passes its tests, as a starting point for your own.

    KIND is loader, quantizer, adapter, formatter, objective, evaluator, exporter, launcher, optimizer, tracker or
    command; NAME is
    the name that users will type.
    """
    from smollm3_finetune.components.kinds import KINDS as EVERY_KIND
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.scaffold.write import plan_scaffold

    scaffold = plan_scaffold(kind, name, output, single=single)
    components = discovered(()).of(next(k for k in EVERY_KIND if k.name == kind))
    if taken := [o for o in components if name in (o.spec.name, *o.spec.aliases)]:
        raise ConfigError(
            f"the {kind} {name!r} already exists in {taken[0].distribution}",
            hint=f"smollm3 plugins new {kind} my-{name}",
        )
    for file in scaffold.write():
        click.echo(f"wrote {file}")
    path = shlex.quote(str(scaffold.path))
    if single:
        commands = [f"smollm3 plugins check {path}", scaffold.use]
    else:
        extra = shlex.quote(f"{scaffold.path}[test]")
        commands = [f"pip install -e {extra}", "smollm3 plugins list", f"smollm3 plugins check {name}",
                    scaffold.use, f"pytest {path}"]  # fmt: skip
    click.echo("\nnext")
    for command in commands:
        click.echo(f"  {command}")
