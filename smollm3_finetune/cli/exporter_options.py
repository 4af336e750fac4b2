"""Options of the chosen exporter, written as flags: `--type q4_0` for `--to-opt type=q4_0`.

The command knows none of them: words that it does not know are matched with the options of the exporter that `--to`
names. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from smollm3_finetune.cli.parsing import HintingCommand

TRUTH = ("true", "false", "yes", "no", "on", "off")
"""Values of an option that is true or false; another word after its flag is not its value."""


class ExportCommand(HintingCommand):
    """A command that leaves flags which it does not know among its arguments, with their values."""

    ignore_unknown_options = True


@dataclass
class Words:
    """The arguments of the command, sorted."""

    targets: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    """`KEY=VALUE` of each option that was written as a flag."""


def targets_among(words: Iterable[str]) -> list[str]:
    """The words that may be the target: every word that is not a flag."""
    return [word for word in words if not word.startswith("-") or word == "-"]


def sorted_words(words: Sequence[str], exporter: str | None, options: type | None, known: Collection[str]) -> Words:
    """Tell the values of flags from the target, by the options dataclass of the exporter.

    `known` are the command's own flags, for a hint. Raises UsageError for a flag that is neither, or without a value.
    """
    from smollm3_finetune.config.options import describe

    infos = {info.name.replace("_", "-"): info for info in (describe(options) if options is not None else ())}
    found, rest = Words(), list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            found.targets += rest
            break
        if not word.startswith("-") or word == "-":
            found.targets.append(word)
            continue
        name, given, value = word.partition("=")
        info: Any = infos.get(name.removeprefix("--").replace("_", "-")) if name.startswith("--") else None
        if info is None:
            raise click.UsageError(_unknown(name, exporter, infos, known))
        if not given and info.type.startswith("true|false"):
            value = rest.pop(0) if rest and rest[0].lower() in TRUTH else "true"
        elif not given:
            if not rest or rest[0].startswith("--"):
                raise click.UsageError(f"Option {name!r} requires an argument.\n  hint: {name} VALUE ({info.type})")
            value = rest.pop(0)
        found.options.append(f"{info.name}={value}")
    return found


def _unknown(name: str, exporter: str | None, infos: Collection[str], known: Collection[str]) -> str:
    """The message for a flag that neither the command nor the exporter has."""
    from smollm3_finetune.errors import did_you_mean

    if exporter is None:
        return f"No such option {name!r}\n  hint: options of an exporter need --to NAME"
    near = did_you_mean(name, [*(f"--{option}" for option in infos), *known])
    own = ", ".join(f"--{option}" for option in infos) or "none"
    hint = f"did you mean {near!r}?" if near else f"options of exporter {exporter!r}: {own}"
    return f"No such option {name!r}\n  hint: {hint}"
