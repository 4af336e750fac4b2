"""The command lines of pages, and how each is checked without running it.

`parse` lets click parse a line: commands, options, numbers of arguments, choices. `check` also looks up the names of
components, their options and the keys of `--set`, as the command would. Words in capitals stand for values of a reader.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import shlex
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import click
from pages import FENCE, PAGES, REGION, ROOT
from regions import text_of

from smollm3_finetune.components import kinds
from smollm3_finetune.errors import SmolLM3Error

NAMED: Mapping[str, kinds.Kind] = {
    "loader": kinds.LOADER, "quant": kinds.QUANTIZER, "requantize": kinds.QUANTIZER, "adapter": kinds.ADAPTER,
    "with_adapter": kinds.ADAPTER, "formatter": kinds.FORMATTER, "objective": kinds.OBJECTIVE,
    "evaluator": kinds.EVALUATOR, "to": kinds.EXPORTER, "launcher": kinds.LAUNCHER, "optimizer": kinds.OPTIMIZER,
    "tracker": kinds.TRACKER,
}  # fmt: skip
"""The kind of component that an option of a command names."""
OF_READERS = ("NAME", "mine", "sizes", "lengths")
"""Commands of plugins that readers write, and of examples."""
USUAL = {"adapter": "lora", "objective": "sft", "loader": "hf", "to": "safetensors", "evaluator": "lm-eval"}
"""The component whose options are given without its name."""


class CommandLine(NamedTuple):
    page: Path
    text: str


def command_lines(pages: Iterable[Path] = PAGES) -> Iterator[CommandLine]:
    """Every `smollm3 …` command in console blocks, indented blocks and inline code of pages."""
    for page in pages:
        text = text_of(page).replace("\\\n", " ")
        for language, body in FENCE.findall(text):
            if language in ("console", "bash", "text", ""):
                for line in body.splitlines():
                    if line.startswith("$ ") or language == "bash":
                        yield from (CommandLine(page, c) for c in smollm3_calls(line.removeprefix("$ ")))
        prose = REGION.sub("", FENCE.sub("", text))
        for line in prose.splitlines():
            if re.match(r" {4,}smollm3 ", line):
                yield CommandLine(page, line.strip())
        for code in re.findall(r"`([^`\n]+)`", prose):
            if code.startswith("smollm3 "):
                yield CommandLine(page, code)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command in a shell line, without assignments of variables before it."""
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if re.fullmatch(r"[|&;]+", word):
            if command:
                yield command
            command = []
        elif command or not re.fullmatch(r"[A-Z][A-Z0-9_]*=\S*", word):
            command.append(word)


def smollm3_calls(line: str) -> Iterator[str]:
    for part in re.split(r"&&|\|(?= )", line):
        words = [w for w in part.strip().split(" ") if w]
        while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=\S*", words[0]):
            words = words[1:]
        if words and words[0].rpartition("/")[2] == "smollm3":
            yield " ".join(["smollm3", *words[1:]])


class Parsed(NamedTuple):
    command: click.Command
    context: click.Context
    values: dict[str, Any]
    rest: list[str]


def parse(line: str) -> Parsed:
    """Let click parse a command line without running it. Raises click.ClickException if it is invalid."""
    from smollm3_finetune.cli import cli

    words = shlex.split(line, comments=True)[1:]
    while words[:1] == ["-p"]:  # a file with the command
        words = words[2:]
    command: click.Command = cli
    context = click.Context(cli, info_name="smollm3", **cli.context_settings)
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-") or words[0] in ("VERB", "…"):
            break
        try:
            _, inner, words = command.resolve_command(context, words)
        except (click.UsageError, SmolLM3Error):
            offered = {n for c in registry_with(()).of(kinds.COMMAND) for n in (c.spec.name, c.full_name)}
            if words[0] in offered or words[0].rpartition(":")[2] in OF_READERS:
                return Parsed(command, context, {}, words)  # a plugin's command, which reads its own options
            raise
        assert inner is not None
        command, context = inner, click.Context(inner, info_name=inner.name, parent=context)
    parsed, rest, _ = command.make_parser(context).parse_args([w for w in words if w != "…"])
    if not isinstance(command, click.Group):
        assert not rest, f"{line}: too many words: {rest}"
    for parameter in command.params:
        if parameter.name in parsed and isinstance(parameter.type, click.Choice | click.types.IntParamType):
            value = parsed[parameter.name]
            if isinstance(value, str) and not value.isupper():
                for one in value.split("|"):  # alternatives: bash|zsh
                    parameter.type.convert(one, parameter, context)
    given = {name: v for name, v in parsed.items() if v is not None and not isinstance(v, Enum)}
    return Parsed(command, context, given, rest)  # an Enum is click's word for a value that is not given


def placeholder(text: Any) -> bool:
    """Whether a reader replaces this word: `RUN`, `FILE.jsonl`, `…`."""
    return (
        re.search(r"…|\w\|\w", str(text)) is not None or re.fullmatch(r"[A-Z][A-Z_]*(\.[a-z]+)?", str(text)) is not None
    )


def check(line: str, absent: Collection[str], complete: bool = True) -> None:
    """Check a command line: `parse`, then components, their options and keys of `--set`.

    `absent` are names of components and plugins that only a reader has. `complete`: arguments that must be given are.
    Raises SmolLM3Error, click.ClickException or AssertionError for what is wrong.
    """
    command, context, values, _ = parse(line)
    if complete and "--help" not in line and not isinstance(command, click.Group):
        missing = [str(p.name) for p in command.params if p.required and p.name not in values]
        assert not missing or "…" in line, f"{missing[0].upper()} is missing"
    typed: dict[str, Any] = {}
    for parameter in command.params:
        name, value = parameter.name, values.get(str(parameter.name))
        several = parameter.multiple or parameter.nargs != 1
        if name is None or value is None or (not several and placeholder(value)):
            continue
        if several:
            value = [v for v in value if not placeholder(v)]
        typed[name] = value if isinstance(parameter.type, click.Path) else parameter.type_cast_value(context, value)
    files = [p for p in typed.get("plugin", ()) if p.startswith("no:") or (ROOT / p).exists()]
    elsewhere = len(files) < len(typed.get("plugin", ()))  # a plugin file that a reader writes
    registry = registry_with(tuple(p if p.startswith("no:") else str(ROOT / p) for p in files))
    _check_words(registry, command, typed, values)
    for name, kind in NAMED.items():
        options = list(typed.get(f"{name}_opt", ()))
        names = typed.get(name)
        names = list(names) if isinstance(names, tuple | list) else [names] if names else []
        for one in names or ([USUAL[name]] if options and name in USUAL else []):
            if one == "all" or (name == "adapter" and ("/" in one or placeholder(one))) or one in absent or elsewhere:
                continue
            _check_component(registry, kind, one, options, name)
    if typed.get("ship_as") and typed["ship_as"] not in absent and not elsewhere:
        _check_format(registry, typed["ship_as"], list(typed.get("ship_as_opt", ())))
    _check_settings(typed)
    if command.name in ("info", "check") and "name" in typed and not placeholder(typed["name"]) and not elsewhere:
        name = typed["name"]
        known = {n for c in registry.components for n in (c.spec.name, *c.spec.aliases, c.full_name)}
        known |= {n for p in registry.plugins for n in (p.name, p.distribution)}
        assert name in known or name in absent or name.endswith(".py"), f"no component or plugin {name!r}"


@functools.cache
def registry_with(files: tuple[str, ...]) -> Any:
    """The components of the installed plugins and of these files; without files, of those in examples/plugins too."""
    from smollm3_finetune.cli.session import discovered

    for file in files:  # a test of another page may have imported another file of this name
        loaded = sys.modules.get(Path(file).stem)
        if loaded is not None and loaded.__file__ != file:
            del sys.modules[Path(file).stem]
    return discovered(files or tuple(example_plugins()))


def forget_examples() -> None:
    """Files in examples/ that were imported may have the name of a file that another test imports."""
    registry_with.cache_clear()
    for name in [
        n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(ROOT / "examples"))
    ]:
        del sys.modules[name]


def example_plugins() -> Iterator[str]:
    """The modules of the plugins in examples/plugins that are not installed; each becomes importable."""
    installed = {point.value for point in importlib.metadata.entry_points(group="smollm3_finetune")}
    for project in sorted((ROOT / "examples" / "plugins").glob("*/pyproject.toml")):
        points = tomllib.loads(text_of(project))["project"]["entry-points"]["smollm3_finetune"]
        for module in sorted(set(points.values()) - installed):
            if str(project.parent) not in sys.path:
                sys.path.append(str(project.parent))
            yield module


def _check_words(registry: Any, command: click.Command, typed: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Of an export: the flags that are options of its exporter become `to_opt`."""
    if command.name != "export":
        return
    from smollm3_finetune.cli.exporter_options import sorted_words

    words = [w for p in command.params if isinstance(p, click.Argument) for w in values.get(str(p.name)) or ()]
    exporter = typed.get("to")
    options = registry.find(kinds.EXPORTER, exporter).options_class() if exporter else None
    known = [o for p in command.params for o in p.opts]
    found = sorted_words([str(w) for w in words], exporter, options, known)
    assert len(found.targets) <= 1, f"several targets: {found.targets}"
    typed["to_opt"] = [*typed.get("to_opt", ()), *found.options]


def _options(options: list[str], section: str) -> dict[str, Any]:
    from smollm3_finetune.config.load import assignment

    found = [assignment(text, f"--{section}-opt") for text in options]
    return {s.key[0]: s.value for s in found if not placeholder(s.value)}


def _check_component(registry: Any, kind: kinds.Kind, name: str, options: list[str], flag: str) -> None:
    from smollm3_finetune.components.selection import choose

    choose(registry, kind, name, _options(options, flag))


def _check_format(registry: Any, name: str, options: list[str]) -> None:
    """The format of `--ship-as` is a quantizer or an exporter."""
    kind = kinds.EXPORTER if name in {c.spec.name for c in registry.of(kinds.EXPORTER)} else kinds.QUANTIZER
    _check_component(registry, kind, name, options, "ship-as")


def _check_settings(typed: Mapping[str, Any]) -> None:
    """Keys and values of `--set` and of the flags that set a key."""
    from smollm3_finetune.cli.options import FLAGS
    from smollm3_finetune.cli.session import flag_settings
    from smollm3_finetune.config.load import assemble

    keys = {name: typed[name] for name in (*FLAGS, "assign") if name in typed}
    if "assign" in keys:
        keys["assign"] = [a for a in keys["assign"] if not placeholder(a.partition("=")[2])]
        assemble([flag_settings(keys)])
