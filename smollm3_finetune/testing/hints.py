"""Checks hints: every option that one names exists in the command that printed it; `typed` follows a hint."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import click

from smollm3_finetune.cli import cli

OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
OTHER_PROGRAMS = ("pip", "torchrun", "accelerate", "hf", "rm", "chmod", "git", "iconv", "printf", "quota", "df",
                  "squeue", "scancel")  # fmt: skip
"""Programs that a hint may name, with options of their own."""
HYPHENATED_PROGRAM = re.compile(r"[a-z]+(-[a-z]+)+ -")


def hints_of(stderr: str) -> list[str]:
    """The hints that a command printed."""
    return [line.partition("hint: ")[2] for line in stderr.splitlines() if line.startswith("  hint: ")]


def command_of(arguments: Sequence[str]) -> tuple[click.Command, list[str]]:
    """The command that these arguments select, and the rest of the arguments."""
    command: click.Command = cli
    rest, plugins = list(arguments), list[str]()
    while rest[:1] == ["-p"] and len(rest) > 2:
        plugins.append(rest[1])
        rest = rest[2:]
    while isinstance(command, click.Group) and rest:
        found = command.get_command(click.Context(command), rest[0])
        if found is None and command is cli:
            found = _of_plugin(rest[0], plugins)
        if found is None:
            break
        command, rest = found, rest[1:]
    return command, rest


def _of_plugin(name: str, plugins: Sequence[str]) -> click.Command | None:
    """The command of a plugin, or None."""
    from smollm3_finetune.cli.plugin_command import command_of
    from smollm3_finetune.cli.session import discovered
    from smollm3_finetune.components.kinds import COMMAND
    from smollm3_finetune.errors import SmolLM3Error

    try:
        return command_of(discovered(plugins).find(COMMAND, name))
    except SmolLM3Error:
        return None


def unknown_options(arguments: Sequence[str], hint: str) -> Iterator[str]:
    """The options in a hint that no command of it has; without a command, it is that of the failed `arguments`."""
    failed, _ = command_of(arguments)
    for part in re.split(r"[;,] |\bor\b|: ", hint):
        words = part.split()
        if any(program in (w.strip("()") for w in words) for program in OTHER_PROGRAMS) or HYPHENATED_PROGRAM.match(
            part
        ):
            continue
        command = failed
        if "smollm3" in words:
            command, words = command_of(words[words.index("smollm3") + 1 :])
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        known |= set(command.context_settings.get("help_option_names", ("--help",)))
        known |= set(exporter_flags()) if command.ignore_unknown_options else set()
        yield from (o for o in OPTION.findall(" ".join(words)) if o not in known)


def exporter_flags() -> Iterator[str]:
    """The options of the installed exporters, which may be written as flags."""
    from smollm3_finetune.cli.session import discovered
    from smollm3_finetune.components.kinds import EXPORTER
    from smollm3_finetune.config.options import describe

    for component in discovered(()).of(EXPORTER):
        yield from (f"--{info.name.replace('_', '-')}" for info in describe(component.options_class()))


def check_hints(arguments: Sequence[str], stderr: str) -> None:
    """Fails if a hint names an option that does not exist."""
    for hint in hints_of(stderr):
        unknown = list(unknown_options(arguments, hint))
        assert not unknown, f"smollm3 {' '.join(arguments)}: no such option {unknown[0]} in the hint: {hint}"


def typed(arguments: Sequence[str], message: str, hint: str) -> Iterator[list[str]]:
    """The commands that a user types who follows a hint, one for each alternative that it offers.

    `arguments` failed with `message`. A hint that names neither an option nor a command gives none.
    """
    guess = re.search(r"did you mean '([^']+)'\?", hint)
    if guess is not None:
        wrong = _misspelled(arguments, message, guess[1])
        yield [a.replace(wrong, guess[1], 1) for a in arguments]
        return
    values = {a for a in arguments if f"got {a!r}" in message}  # malformed: the hint replaces them
    arguments = [a for at, a in enumerate(arguments) if not values & set(arguments[at : at + 2])]
    hint = hint.partition("; about this option: ")[0]
    for alternative in re.split(r"; |, or |\bor\b (?=-)|, (?=-)", hint):
        if "smollm3 " in alternative:
            yield shlex.split(alternative[alternative.index("smollm3 ") :].rstrip(","))[1:]
        elif alternative.startswith("omit "):
            yield without(arguments, *OPTION.findall(hint if "omit it" in alternative else alternative))
        elif (option := OPTION.search(alternative)) and option[0] != "--debug":
            words = shlex.split(alternative[option.start() :])
            if len(words) > 1:  # "choose another --output" has no value to type
                yield with_options(arguments, words)


def _misspelled(arguments: Sequence[str], message: str, right: str) -> str:
    """The word of the arguments that a hint replaces by `right`: the most similar one that the message names."""
    import difflib

    parts = {part for a in arguments for part in (a, *re.split("[=,]", a)) if part in message and part != right}
    return max(sorted(parts), key=lambda part: difflib.SequenceMatcher(None, part, right).ratio())


def with_options(arguments: Sequence[str], words: Sequence[str]) -> list[str]:
    """The arguments with the options in `words`, which replace earlier values of the same option or key."""
    command, _ = command_of(arguments)
    params = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts)}
    rest, out = list(words), list(arguments)
    while rest and (param := params.get(rest[0])) is not None:
        flag = rest.pop(0)
        value = [] if getattr(param, "is_flag", False) else [rest.pop(0).rstrip(",")]
        if flag == "-p":
            kept = out
        elif value and "=" in value[0]:
            kept = without(out, flag, key=value[0].partition("=")[0])
        else:
            kept = without(out, *(*param.opts, *param.secondary_opts))
        out = [*kept, flag, *value]
    return out


def without(arguments: Sequence[str], *options: str, key: str | None = None) -> list[str]:
    """The arguments without these options and their values; with `key`, only those that set it or a key inside it."""
    command, _ = command_of(arguments)
    flags = {n for p in command.params if getattr(p, "is_flag", False) for n in (*p.opts, *p.secondary_opts)}
    out: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word not in options:
            out.append(word)
        elif word not in flags and rest:
            value = rest.pop(0)
            if key is not None and not re.match(rf"{re.escape(key)}[.=]", value):
                out += [word, value]
    return out
