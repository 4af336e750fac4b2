"""A command of a plugin: found when its name is typed, run as core's own commands are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.options import set_debug

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import RegisteredComponent, Registry


class PluginCommand(click.Command):
    """Runs the command of a plugin, which gets a `CommandTools`. What it raises is shown as an error of the plugin."""

    def __init__(self, name: str, component: RegisteredComponent, plugins: Sequence[str]) -> None:
        super().__init__(name, add_help_option=False)
        self.component = component
        self.plugins = tuple(plugins)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)  # for the command of the plugin
        return ctx.args

    def invoke(self, ctx: click.Context) -> Any:
        from smollm3_finetune.cli.tools import Tools

        if not {"-h", "--help"} & {*ctx.args}:
            self._check_requirements()
        command = command_of(self.component)
        about: dict[str, Any] = {"parent": ctx.parent, "obj": Tools(ctx.info_name or "", self.plugins)}
        with attributed(self.component), command.make_context(ctx.info_name, list(ctx.args), **about) as inner:
            command.invoke(inner)
        return None  # what it returns is not the exit code

    def _check_requirements(self) -> None:
        """Raises MissingRequirementError if the command requires what is missing here."""
        from smollm3_finetune.components.requirements import requirement_problems
        from smollm3_finetune.errors import raise_all
        from smollm3_finetune.model.device import guess_device

        requires = self.component.spec.requires
        if requires.distributions or requires.accelerators:
            raise_all(list(requirement_problems(self.component.title, requires, guess_device())))


def command_of(component: RegisteredComponent) -> click.Command:
    """The click command of a component, with `--debug`. Raises PluginError if its factory is something else."""
    command: click.Command = component.command()
    add_debug(command)
    return command


def add_debug(command: click.Command) -> None:
    """Give a command, and each command inside it, the option `--debug`, unless it has one."""
    if not any("--debug" in p.opts for p in command.params):
        command.params.append(
            click.Option(
                ["--debug"], is_flag=True, expose_value=False, callback=set_debug, help="Show tracebacks of errors."
            )
        )
    for inner in getattr(command, "commands", {}).values():
        add_debug(inner)


@contextlib.contextmanager
def attributed(component: RegisteredComponent) -> Iterator[None]:
    """Turn an exception that a command did not raise on purpose into a PluginError that names its plugin."""
    from smollm3_finetune.components.registry import attributed_to

    on_purpose: BaseException | None = None
    with attributed_to(component):
        try:
            yield
        except (click.ClickException, click.exceptions.Exit, click.Abort, SystemExit, BrokenPipeError) as e:
            on_purpose = e
    if on_purpose is not None:
        raise on_purpose


def find_command(ctx: click.Context, name: str, plugins: Sequence[str], built_in: Sequence[str]) -> PluginCommand:
    """The command of a plugin. Raises UsageError if there is none, or what `Registry.find` raises."""
    from smollm3_finetune.cli.session import discovered
    from smollm3_finetune.components.kinds import COMMAND
    from smollm3_finetune.components.registry import known_components

    registry = discovered(plugins)
    names = {n for o in registry.of(COMMAND) for n in (o.spec.name, *o.spec.aliases)}
    known = known_components().get(COMMAND.name, {})
    if name in names or name in known or ":" in name or registry.broken_offering(name) is not None:
        return PluginCommand(name, registry.find(COMMAND, name), plugins)
    hint = _hint(registry, name, [*built_in, *sorted({*names, *known})])
    raise click.UsageError(f"No such command {name!r}\n  hint: {hint}", ctx)


def _hint(registry: Registry, name: str, names: Sequence[str]) -> str:
    from smollm3_finetune.errors import did_you_mean

    if similar := did_you_mean(name, names):
        return f"did you mean {similar!r}?"
    broken = ", ".join(r.name for r in registry.broken())
    aside = f"; broken plugins that may offer it: {broken}" if broken else ""
    return f"commands: {', '.join(names)}{aside}"
