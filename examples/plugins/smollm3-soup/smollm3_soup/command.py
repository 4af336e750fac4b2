"""The command: it reads the adapters of the runs, and writes their mean."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smollm3_finetune.api import ConfigError

if TYPE_CHECKING:
    from smollm3_finetune.api import CommandTools


@click.command(short_help="Average the LoRA adapters of several runs of one base, exactly.")
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@click.option("--output", metavar="DIR", required=True, help="Directory of the new adapter; must not exist.")
@click.pass_obj
def soup(tools: CommandTools, runs: tuple[str, ...], output: str) -> None:
    """Average the LoRA adapters of several runs of one base, for example runs with different seeds.

    The new adapter changes each weight of the base by the mean of the changes of the runs. Its rank is the sum of their
    ranks. `smollm3 generate DIR` and `smollm3 merge MODEL --adapter-path DIR` take it.
    """
    from smollm3_soup.mean import check_alike, read, write_mean

    if len(runs) < 2:
        raise ConfigError("a mean needs at least two runs", hint="smollm3 soup RUN RUN --output DIR")
    place = Path(output)
    if place.exists():
        raise ConfigError(f"--output {output} already exists", hint="choose another --output")
    parts = [read(tools.run(run).directory / "adapter") for run in runs]
    check_alike(parts)
    with tools.progress.task("averaging", len(parts[0].layers)) as task:
        rank = write_mean(parts, place, task.advance)
    tools.say(f"the mean of {len(parts)} adapters has rank {rank}; try it: "
              f"smollm3 generate {shlex.quote(output)} --prompt TEXT")  # fmt: skip
    tools.print(output)
