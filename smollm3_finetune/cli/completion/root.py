"""The command line as completion needs it: commands and options without the code of the commands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from smollm3_finetune.cli import COMMANDS, cli
from smollm3_finetune.cli.completion.offered import named, offered
from smollm3_finetune.cli.completion.stored import stored_command
from smollm3_finetune.cli.completion.values import complete

SETTINGS = {"help_option_names": [], "ignore_unknown_options": True, "allow_extra_args": True}
NOTHING: dict[str, Any] = {"context_settings": SETTINGS, "add_help_option": False}
"""A command that cannot be imported: it has nothing to complete."""


class LightCommand(click.Command):
    """A command whose options are completed also before their first dash is typed."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        found = super().shell_complete(ctx, incomplete or "--")
        return [_first_sentence(item) for item in found]


class LightGroup(click.Group):
    """A group whose commands are known by name and summary."""

    def __init__(self, *args: Any, summaries: dict[str, str], **values: Any) -> None:
        super().__init__(*args, **values)
        self.summaries = summaries

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        return _commands_or_options(self, ctx, incomplete, lambda: self.summaries)


class Root(click.Group):
    """`smollm3`: the built-in commands, and those of plugins, which are looked for only if they matter."""

    def has(self, name: str) -> bool:
        return name in COMMANDS or named(("command",), name) is not None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if not self.has(cmd_name):
            return None
        described = stored_command(cmd_name)
        return click.Command(cmd_name, **NOTHING) if described is None else light_command(cmd_name, described)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        def summaries() -> dict[str, str]:
            """The built-in commands, which take no `-p` before their name, then those of plugins."""
            built_in = {} if ctx.params.get("plugin") else {name: text for name, (_, text) in COMMANDS.items()}
            return {**built_in, **{name: c.summary for name, c in offered().named("command")}}

        return _commands_or_options(self, ctx, incomplete, summaries)


def _commands_or_options(
    group: click.Group, ctx: click.Context, incomplete: str, summaries: Callable[[], dict[str, str]]
) -> list[CompletionItem[str]]:
    if incomplete.startswith("-"):
        return [_first_sentence(item) for item in click.Command.shell_complete(group, ctx, incomplete)]
    return [CompletionItem(name, help=text) for name, text in summaries().items() if name.startswith(incomplete)]


def root_command() -> Root:
    flags = [_option_of_root(p) for p in cli.params if isinstance(p, click.Option)]
    flags.append(click.Option(["-h", "--help"], is_flag=True, help="Show this message and exit."))
    return Root("smollm3", params=flags, context_settings=SETTINGS, add_help_option=False)


def _option_of_root(option: click.Option) -> click.Option:
    row = {"opts": option.opts, "choices": [], "metavar": option.metavar or "", "argument": False}
    return click.Option(
        [*option.opts, option.name or ""], is_flag=option.is_flag, multiple=option.multiple, help=option.help,
        shell_complete=functools.partial(complete, row, {}),
    )  # fmt: skip


def light_command(name: str, described: dict[str, Any]) -> click.Command:
    """A command, or a group with its commands, from what `describe_command` returned."""
    params = [_parameter(row, described) for row in described["params"]]
    common: dict[str, Any] = {"params": params, "context_settings": SETTINGS, "add_help_option": False}
    if described["commands"] is None:
        return LightCommand(name, **common)
    inner = described["commands"]
    group = LightGroup(name, summaries={n: row["help"] for n, row in inner.items()}, **common)
    for inner_name, row in inner.items():
        group.add_command(light_command(inner_name, row))
    return group


def _parameter(row: dict[str, Any], described: dict[str, Any]) -> click.Parameter:
    values = functools.partial(complete, row, described)
    if row["argument"]:
        return click.Argument([row["name"]], nargs=row["nargs"], required=False, shell_complete=values)
    return click.Option(
        [*row["opts"], row["name"]], is_flag=row["flag"], multiple=row["multiple"], hidden=row["hidden"],
        nargs=row["nargs"], help=row["help"], shell_complete=values,
    )  # fmt: skip


def _first_sentence(item: CompletionItem[str]) -> CompletionItem[str]:
    head, dot, _ = (item.help or "").partition(". ")
    return CompletionItem(item.value, type=item.type, help=f"{head}{dot.strip()}")
