"""The table of commands. Imports only click."""

from __future__ import annotations

import os
from typing import Any

import click

from smollm3_finetune.cli.parsing import LazyGroup
from smollm3_finetune.version import __version__

COMMANDS = {
    "train": ("smollm3_finetune.cli.commands.train:train", "Fine-tune a model."),
    "plan": ("smollm3_finetune.cli.commands.plan:plan", "Predict the memory of a run, or find one that fits."),
    "generate": (
        "smollm3_finetune.cli.commands.generate:generate",
        "Answer a prompt with the model of a run, or any other model.",
    ),
    "eval": (
        "smollm3_finetune.cli.commands.eval:evaluate",
        "Measure whether a fine-tuned model is better than its base.",
    ),
    "chat": ("smollm3_finetune.cli.commands.chat:chat", "Chat with the model of a run, or any other model."),
    "merge": ("smollm3_finetune.cli.commands.merge:merge", "Merge a run's adapter into its base model."),
    "quantize": ("smollm3_finetune.cli.commands.quantize:quantize", "Write a quantized checkpoint of a model."),
    "export": (
        "smollm3_finetune.cli.commands.export:export",
        "Write a run or a model for other software, and verify it.",
    ),
    "pipeline": (
        "smollm3_finetune.cli.commands.pipeline:pipeline",
        "Train, merge, quantize and evaluate in stages, from one file.",
    ),
    "sweep": (
        "smollm3_finetune.cli.commands.sweep:sweep",
        "Train one run for each combination of values, and compare them.",
    ),
    "push": (
        "smollm3_finetune.cli.commands.push:push",
        "Publish a run's adapter, or a model, on the Hugging Face Hub.",
    ),
    "data": ("smollm3_finetune.cli.commands.data:data", "Preview training rows: text, tokens, loss mask, counts."),
    "runs": ("smollm3_finetune.cli.commands.runs:runs", "List, show, compare, report on or prune runs."),
    "compat": ("smollm3_finetune.cli.commands.compat:compat", "Show which quantizers work with which adapters."),
    "plugins": ("smollm3_finetune.cli.commands.plugins:plugins", "Find, install, inspect, check or create plugins."),
    "config": (
        "smollm3_finetune.cli.commands.config:config",
        "Show or check a configuration, list presets, or print the JSON schema.",
    ),
    "cache": ("smollm3_finetune.cli.commands.cache:cache", "List, check or clean the cache."),
    "doctor": ("smollm3_finetune.cli.commands.doctor:doctor", "Check that this machine can run smollm3."),
    "completion": (
        "smollm3_finetune.cli.commands.completion:completion",
        "Print or install the completion of bash, zsh or fish.",
    ),
}


EPILOG = "smollm3 train without arguments fine-tunes a small built-in model in under a minute."


class Commands(LazyGroup):
    """The group of all commands. Plugins are imported if a command is not built in, and by `-p`."""

    def main(self, *args: Any, **values: Any) -> Any:
        if asked := os.environ.get("_SMOLLM3_COMPLETE"):
            from smollm3_finetune.cli.completion.answers import answer

            click.echo(answer(asked))
            return 0
        return super().main(*args, **values)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.table:
            _quiet_libraries()
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, plugins = args[0], ctx.params.get("plugin") or ()
        if name in self.table or name.startswith("-"):
            if plugins:
                import shlex

                hint = shlex.join(["smollm3", *args, *(word for p in plugins for word in ("-p", p))])
                raise click.UsageError(f"-p belongs after the name of a built-in command\n  hint: {hint}", ctx)
            return super().resolve_command(ctx, args)
        from smollm3_finetune.cli.plugin_command import find_command

        _quiet_libraries()
        return name, find_command(ctx, name, plugins, self.list_commands(ctx)), args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_commands(ctx, formatter)
        if rows := _commands_of_plugins():
            with formatter.section("Commands of plugins"):
                formatter.write_dl(rows)


def _commands_of_plugins() -> list[tuple[str, str]]:
    """The commands of the installed plugins and their summaries, from the snapshot: no plugin is imported."""
    from smollm3_finetune.components.snapshot import read_snapshot

    snapshot = read_snapshot()
    return [(name, one.summary) for name, one in snapshot.named("command")] if snapshot is not None else []


@click.group(
    cls=Commands,
    table=COMMANDS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "-p", "--plugin", "plugin", multiple=True, metavar="FILE", help="A plugin file or module, for a command of it.",
)  # fmt: skip
@click.version_option(__version__, prog_name="smollm3")
def cli(plugin: tuple[str, ...]) -> None:
    """Fine-tune SmolLM3 and other causal language models. Every method is a plugin."""


def _quiet_libraries() -> None:
    """Log only errors of libraries, and warnings and errors of this project.

    If torchao is installed, torch logs two lines to `torch.utils._pytree` whenever transformers looks for torchao.
    """
    import logging

    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("smollm3_finetune").setLevel(logging.WARNING)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
