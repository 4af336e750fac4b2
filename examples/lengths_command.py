"""A command plugin: how many tokens each training row has, and how many of them are trained on.

smollm3 -p examples/lengths_command.py lengths --longer 100 examples/rows.jsonl
"""

from __future__ import annotations

import click

from smollm3_finetune.api import CommandSpec, CommandTools, hookimpl


@hookimpl
def smollm3_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="lengths",
            summary="Show the number of tokens of each row.",
            factory="lengths_command:lengths",
            api=2,
        )
    ]


@click.command()
@click.argument("data")
@click.option("--model", default="tiny", show_default=True, help="A model or a run: its tokenizer is used.")
@click.option("--longer", type=click.IntRange(min=0), default=0, help="Show only rows with more tokens.")
@click.pass_obj
def lengths(tools: CommandTools, data: str, model: str, longer: int) -> None:
    """Show the number of tokens of each row of DATA: a file, glob, directory or Hub ID."""
    for row in tools.rows(data, model=model):
        if row.length > longer:
            left_out = f"  left out: {row.left_out}" if row.left_out else ""
            tools.print(f"{row.where}  {row.length} tokens, {row.supervised} trained on{left_out}")
