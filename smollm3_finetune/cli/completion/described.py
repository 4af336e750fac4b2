"""Describes a command as plain values: its commands, its options, and the values that are known beforehand."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import click

from smollm3_finetune.cli.completion.keys import COMPONENTS
from smollm3_finetune.config.options import describe, field_types
from smollm3_finetune.config.schema import (
    COMPONENT_SECTIONS,
    DEFAULT_ADAPTER,
    DEFAULT_LAUNCHER,
    DEFAULT_OBJECTIVE,
    DTYPES,
    PLAIN_SECTIONS,
    RunConfig,
)

DEVICES = ("auto", "cpu", "cuda", "mps")
DEFAULTS = {"adapter": DEFAULT_ADAPTER, "objective": DEFAULT_OBJECTIVE, "launcher": DEFAULT_LAUNCHER}
"""The component of a section that a run has if its line names none."""


def describe_command(command: click.Command, parent: click.Context) -> dict[str, Any]:
    """A command, and all commands in it, as JSON."""
    context = click.Context(command, parent=parent, info_name=command.name)
    params = [_parameter(p) for p in command.get_params(context)]
    inner: dict[str, Any] | None = None
    if isinstance(command, click.Group):
        names = command.list_commands(context)
        found = {name: command.get_command(context, name) for name in names}
        inner = {n: describe_command(c, context) for n, c in found.items() if c is not None and not c.hidden}
    whole = any(row["opts"] == ["--set"] for row in params)
    return {
        "help": command.get_short_help_str(200),
        "params": params,
        "commands": inner,
        "keys": list(_keys()) if whole else [],
        "defaults": DEFAULTS if whole else {},
    }


def _parameter(param: click.Parameter) -> dict[str, Any]:
    option = param if isinstance(param, click.Option) else None
    choices = list(map(str, param.type.choices)) if isinstance(param.type, click.Choice) else []
    if "--dtype" in param.opts or "--compute-dtype" in param.opts:
        choices = list(DTYPES)
    elif "--device" in param.opts:
        choices = list(DEVICES)
    return {
        "name": param.name,
        "opts": [*param.opts, *param.secondary_opts] if option is not None else [],
        "argument": option is None,
        "flag": option is not None and (option.is_flag or option.count),
        "multiple": param.multiple,
        "hidden": option is not None and option.hidden,
        "nargs": param.nargs,
        "help": option.help or "" if option is not None else "",
        "metavar": param.metavar or _of_path(param.type),
        "choices": choices,
    }


def _of_path(kind: Any) -> str:
    """A metavar that says which paths a value may be; empty if it is none."""
    if isinstance(kind, click.Path):
        return "FILE" if kind.file_okay else "DIR"
    return "FILE" if isinstance(kind, click.File) else ""


def listed_values(annotation: Any) -> tuple[str, ...]:
    """The possible values of an annotation, such as `nf4` and `fp4`; empty if they are not listed."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return tuple(map(str, inside))
    if annotation is bool:
        return ("true", "false")
    if origin in (Union, types.UnionType):
        found = [value for one in inside if one is not type(None) for value in listed_values(one)]
        return tuple(dict.fromkeys([*found, "none"] if found and type(None) in inside else found))
    return ()


def options_of(cls: type) -> Iterator[tuple[str, str, str, str, tuple[str, ...]]]:
    """The options of a dataclass: name, type, default, help and possible values."""
    hints = field_types(cls)
    for info in describe(cls):
        default = "none" if info.default is None else str(info.default)
        yield info.name, info.type, default, info.help, listed_values(hints[info.name])


def _keys() -> Iterator[list[Any]]:
    """The keys of a configuration that `--set` takes, without options of components: key, help and values."""
    sections = (*COMPONENT_SECTIONS, *PLAIN_SECTIONS)
    hints = field_types(RunConfig)
    for info in describe(RunConfig):
        if info.name not in sections and info.name != "given":
            yield [info.name, info.help, list(listed_values(hints[info.name]))]
    for section in COMPONENT_SECTIONS:
        help_text = next(f.metadata["help"] for f in dataclasses.fields(RunConfig) if f.name == section)
        yield [f"{section}.name", help_text, [COMPONENTS[section]]]
    for section, cls in PLAIN_SECTIONS.items():
        for name, _, _, help_text, values in options_of(cls):
            yield [f"{section}.{name}", help_text, list(values)]
