"""Commands and groups that add a hint to a name, an option or an argument that they do not know; help of components."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class CommandGroup(click.Group):
    """A group that names its commands, or the similar one, for a command that does not exist.

    `for_path` is the command that takes a path which was typed without one, such as `smollm3 data stats --data`.
    """

    def __init__(self, *args: Any, for_path: str | None = None, **values: Any) -> None:
        super().__init__(*args, **values)
        self.for_path = for_path

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        commands = self.list_commands(ctx)
        if name not in commands and not name.startswith("-"):
            import difflib
            import shlex

            if self.for_path is not None and _is_path(name):
                raise click.UsageError(f"No such command {name!r}\n  hint: {self.for_path} {shlex.quote(name)}", ctx)
            similar = difflib.get_close_matches(name, commands, n=1)
            hint = f"did you mean {similar[0]!r}?" if similar else f"commands: {', '.join(commands)}"
            raise click.UsageError(f"No such command {name!r}\n  hint: {hint}", ctx)
        return super().resolve_command(ctx, args)


def _is_path(text: str) -> bool:
    """Whether a user who typed this means a file or a directory, which may not exist."""
    return bool(os.path.splitext(text)[1]) or os.sep in text or os.path.exists(text)


class LazyGroup(CommandGroup):
    """A group that imports a command only when it is used.

    `table` gives the import path of each command (`package.module:name`) and its line in the group's help.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **values: Any) -> None:
        super().__init__(*args, **values)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, name = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in self.table.items()])


class HintingCommand(click.Command):
    """A command that says which configuration key or which component has an option that the command does not have."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        typed = list(args)  # the parser removes what it has read
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as e:
            name = e.option_name.lstrip("-").replace("-", "_")
            flags = {flag for p in self.params for flag in p.opts}
            if "--requantize" in typed:
                flags.discard("--quant-opt")  # that of the run's base
            hints = _ship_setting(name, typed) if "--ship-as-opt" in flags else ""
            if hint := hints or " or ".join(_settings(name, flags)):
                raise click.UsageError(f"No such option {e.option_name!r}\n  hint: {hint}", ctx) from e
            raise


class RowsCommand(HintingCommand):
    """A command that takes rows with `--data`: an argument without it is refused with that hint."""

    allow_extra_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            _refuse(ctx, ctx.args[0])
        return ctx.args


def _refuse(ctx: click.Context, argument: str) -> NoReturn:
    import shlex

    model, data = f"--model {shlex.quote(argument)}", f"--data {shlex.quote(argument)}"
    if os.path.exists(os.path.join(argument, "run.yaml")):
        whole = f"--config {shlex.quote(os.path.join(argument, 'run.yaml'))}"
        hint = f"to continue the run: --resume {shlex.quote(argument)}" if ctx.info_name == "train" else whole
    elif os.path.exists(os.path.join(argument, "config.json")):
        hint = model
    else:
        hint = data if os.path.exists(argument) else f"for rows: {data}; for a model: {model}"
    raise click.UsageError(f"Got unexpected argument {argument!r}\n  hint: {hint}", ctx)


def _settings(name: str, flags: Iterable[str]) -> Iterator[str]:
    """What sets an option of this name with a command that has these flags: a configuration key, or a component's."""
    from smollm3_finetune.config.options import describe
    from smollm3_finetune.config.schema import PLAIN_SECTIONS

    if "--set" in flags:
        for section, cls in PLAIN_SECTIONS.items():
            if name in {info.name for info in describe(cls)}:
                yield f"--set {section}.{name}=VALUE"
                return
    yield from _component_settings(name, flags)


def _component_settings(name: str, flags: Iterable[str]) -> Iterator[str]:
    from smollm3_finetune.cli.session import find_plugins
    from smollm3_finetune.components.kinds import KINDS, QUANTIZER
    from smollm3_finetune.errors import SmolLM3Error

    try:
        registry: Any = find_plugins((), False)
    except SmolLM3Error:
        return
    for kind in (k for k in KINDS if k.section):
        flag = f"--{kind.section}-opt"
        if kind is QUANTIZER and flag not in flags:
            flag = "--requantize-opt"
        if flag in flags and any(name in _option_names(component) for component in registry.of(kind)):
            yield f"{flag} {name}=VALUE"


def _ship_setting(name: str, args: list[str]) -> str:
    """What sets an option of this name of the format that `--ship-as` names; empty if that has no such option."""
    from smollm3_finetune.cli.session import find_plugins
    from smollm3_finetune.components.kinds import EXPORTER, QUANTIZER
    from smollm3_finetune.errors import SmolLM3Error

    given = [value for flag, value in itertools.pairwise(args) if flag == "--ship-as"]
    given += [arg.partition("=")[2] for arg in args if arg.startswith("--ship-as=")]
    if not given:
        return ""
    try:
        registry: Any = find_plugins((), False)
    except SmolLM3Error:
        return ""
    named = [c for kind in (QUANTIZER, EXPORTER) for c in registry.of(kind) if given[-1] in (c.spec.name, c.full_name)]
    return f"--ship-as-opt {name}=VALUE" if any(name in _option_names(c) for c in named) else ""


def _option_names(component: Any) -> set[str]:
    from smollm3_finetune.config.options import describe
    from smollm3_finetune.errors import SmolLM3Error

    try:
        return {info.name for info in describe(component.options_class())}
    except SmolLM3Error:  # a broken plugin: another message names it
        return set()


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
