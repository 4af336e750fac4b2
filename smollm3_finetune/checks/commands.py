"""Looks into a click command of a plugin: whether its help can be shown, and what has none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def missing_help(command: Any, name: str) -> list[str]:
    """The commands and options without help, by the words that a user types."""
    return [shown for words, one in each_command(command, name) for shown in _without_help(words, one)]


def each_command(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A command and all commands inside it, with the words that call them."""
    yield name, command
    for inner, one in getattr(command, "commands", {}).items():
        yield from each_command(one, f"{name} {inner}")


def _without_help(words: str, command: Any) -> Iterator[str]:
    if not (command.help or "").strip():
        yield words
    for parameter in command.params:
        if parameter.param_type_name == "option" and not (getattr(parameter, "help", "") or "").strip():
            yield f"{words} {max(parameter.opts, key=len)}"


def runs_help(command: Any, name: str) -> None:
    """Format the help of a command and of all commands inside it. Raises what they raise."""
    import click

    for words, one in each_command(command, name):
        with click.Context(one, info_name=words) as context:
            one.get_help(context)
