"""The commands: their table, and the group that imports one when it is used. Imports click alone."""

from __future__ import annotations

import importlib

import click

from smollm3_finetune.version import __version__

COMMANDS = {
    "train": ("smollm3_finetune.cli.commands.train:train", "Fine-tune a model."),
    "generate": ("smollm3_finetune.cli.commands.generate:generate", "Answer a prompt with a run or a model."),
    "merge": ("smollm3_finetune.cli.commands.merge:merge", "Merge a run's adapter into its base: one ordinary model."),
    "quantize": ("smollm3_finetune.cli.commands.quantize:quantize", "Write a quantized checkpoint of a model."),
    "data": ("smollm3_finetune.cli.commands.data:data", "Show what training rows become: text, tokens, mask, counts."),
    "compat": ("smollm3_finetune.cli.commands.compat:compat", "Show which quantizer works with which adapter."),
    "plugins": ("smollm3_finetune.cli.commands.plugins:plugins", "Show, check or start plugins."),
    "config": ("smollm3_finetune.cli.commands.config:config", "Show, check or describe a run's configuration."),
    "cache": (
        "smollm3_finetune.cli.commands.cache:cache",
        "Show or delete what was converted, quantized and tokenized.",
    ),
    "doctor": ("smollm3_finetune.cli.commands.doctor:doctor", "Look for what would keep a run from working here."),
}


EPILOG = "smollm3 train, with no arguments, tunes a small embedded model in under a minute."


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        _quiet_libraries()
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean 'smollm3 {near[0]}'?" if near else f"verbs: {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no verb {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="smollm3")
def cli() -> None:
    """Fine-tune SmolLM3 and other causal language models. Every method is a plugin."""


def _quiet_libraries() -> None:
    """What libraries merely note is not for users: of others only errors are shown, of this project warnings too.

    torchao, where it is installed, has torch say two lines through this logger whenever transformers looks for it.
    """
    import logging

    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("smollm3_finetune").setLevel(logging.WARNING)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
