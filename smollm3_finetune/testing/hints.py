"""Checks that every option in a hint exists in the command that printed the hint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import click

from smollm3_finetune.cli import cli

OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
OTHER_PROGRAMS = ("pip", "torchrun", "accelerate", "llama-gguf-split", "hf", "rm", "chmod", "git", "iconv", "printf")
"""Programs that a hint may name, with options of their own."""


def hints_of(stderr: str) -> list[str]:
    """The hints that a command printed."""
    return [line.partition("hint: ")[2] for line in stderr.splitlines() if line.startswith("  hint: ")]


def command_of(arguments: Sequence[str]) -> tuple[click.Command, list[str]]:
    """The command that these arguments select, and the rest of the arguments."""
    command: click.Command = cli
    rest = list(arguments)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            break
        command, rest = found, rest[1:]
    return command, rest


def unknown_options(arguments: Sequence[str], hint: str) -> Iterator[str]:
    """The options in a hint that no command of it has; without a command, it is that of the failed `arguments`."""
    failed, _ = command_of(arguments)
    for part in re.split(r"[;,] |\bor\b|: ", hint):
        words = part.split()
        if any(program in words for program in OTHER_PROGRAMS):
            continue
        command = failed
        if "smollm3" in words:
            command, words = command_of(words[words.index("smollm3") + 1 :])
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        known |= set(command.context_settings.get("help_option_names", ("--help",)))
        yield from (o for o in OPTION.findall(" ".join(words)) if o not in known)


def check_hints(arguments: Sequence[str], stderr: str) -> None:
    """Fails if a hint names an option that does not exist."""
    for hint in hints_of(stderr):
        unknown = list(unknown_options(arguments, hint))
        assert not unknown, f"smollm3 {' '.join(arguments)}: no such option {unknown[0]} in the hint: {hint}"
