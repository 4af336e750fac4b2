"""`smollm3 runs report`. Does not import torch."""

from __future__ import annotations

import click

from smollm3_finetune.cli.options import debug_option


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--output", metavar="FILE",
    help="File to write; default: report.html in the run directory, or runs-report.html here for several runs. "
    "A report is replaced, any other file is not.",
)  # fmt: skip
@click.option("--runs", "folder", metavar="DIR", help="Folder in which runs are looked up by name; default: runs/.")
@debug_option
def report(runs: tuple[str, ...], output: str | None, folder: str | None) -> None:
    """Write an HTML page about one or several runs, and print its path.

    The page is one file that needs no network: verdict, curves, answers before and after training, data,
    configuration, warnings. It works for runs in any state, also during training.

    \b
    Examples:
      smollm3 runs report runs/20261122-101500-tiny-lora
      smollm3 runs report first second third --output three-runs.html
    """
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.report.write import write_report
    from smollm3_finetune.runs.find import named_run, runs_folder

    where = runs_folder(folder)
    found = [named_run(run, where, "smollm3 runs report") for run in dict.fromkeys(runs)]
    click.echo(write_report(found, None if output is None else user_path(output, "--output")))
