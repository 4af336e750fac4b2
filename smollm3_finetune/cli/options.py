"""Options that several commands share. Imports nothing heavy: torch is imported inside functions only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from smollm3_finetune.model_files.dtypes import full_name

F = TypeVar("F", bound=Callable[..., Any])

FLAGS: Mapping[str, tuple[str, ...]] = {
    "model": ("model",),
    "start_from": ("from",),
    "fresh_adapter": ("fresh_adapter",),
    "loader": ("loader", "name"),
    "quant": ("quant", "name"),
    "adapter": ("adapter", "name"),
    "objective": ("objective", "name"),
    "formatter": ("formatter", "name"),
    "launcher": ("launcher", "name"),
    "optimizer": ("optimizer", "name"),
    "tracker": ("tracker", "name"),
    "data": ("data", "path"),
    "validation": ("data", "validation"),
    "preset": ("preset",),
    "output": ("output",),
    "max_steps": ("train", "max_steps"),
    "max_time": ("train", "max_time"),
    "epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "learning_rate": ("train", "learning_rate"),
    "ship_as": ("train", "ship_as"),
    "max_length": ("data", "max_length"),
    "device": ("device",),
    "dtype": ("dtype",),
    "seed": ("seed",),
}
"""Which configuration key each flag sets."""
SPELLED = {"start_from": "--from"}
"""Flags that are spelled differently from the name of their value."""


def flag_of(name: str) -> str:
    """The flag of a name in `FLAGS`: `--max-steps`."""
    return SPELLED.get(name, f"--{name.replace('_', '-')}")


class Number(click.FloatRange):
    """A range of finite numbers: `nan` and `inf` are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


class Dtype(click.Choice[str]):
    """One of several dtypes, also by its short name: `bf16`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(full_name(str(value)), param, ctx)


def set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Record on the root context that tracebacks are shown."""
    if value and ctx.find_root().obj is not None:
        ctx.find_root().obj.debug = True


def debug_option(f: F) -> F:
    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=set_debug, help="Show tracebacks of errors."
    )(f)


def plugin_options(f: F) -> F:
    """`-p`, `--no-plugins` and `--debug`."""
    f = debug_option(f)
    f = click.option("--no-plugins", is_flag=True, help="Disable all installed plugins, the bundled ones included.")(f)
    return click.option(
        "-p", "--plugin", "plugin", multiple=True, metavar="FILE|MODULE|no:NAME",
        help="Use a plugin file or module; no:NAME disables an installed plugin.",
    )(f)  # fmt: skip


def composition_options(
    f: F, quant: str = "Quantizer; default: the one that wrote the checkpoint, otherwise `none`."
) -> F:
    """The options that select a loader, a quantizer, a device and a data type."""
    for flag, word in (("--loader-opt", "loader"), ("--quant-opt", "quantizer")):
        f = click.option(flag, multiple=True, metavar="K=V", help=f"An option of the {word}.")(f)
    f = click.option("--dtype", metavar="NAME", help="auto, float32, bfloat16, float16 or float64.")(f)
    f = click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, …")(f)
    f = click.option("--quant", metavar="NAME", help=quant)(f)
    return click.option("--loader", metavar="NAME", help="Loader; default: the one that recognizes the model.")(f)


def config_flag(name: str, metavar: str, *others: str, multiple: bool = False) -> Callable[[F], F]:
    """The flag of `FLAGS` that sets a configuration key. Type, help and default are the schema's."""
    from smollm3_finetune.config.schema import key_info

    info = key_info(FLAGS[name])
    text = info.help
    if multiple:
        text = f"{text} Repeat the option for several values."
    if info.default is not None and not multiple:
        text = f"{text}  [default: {info.default}]"
    kinds: Mapping[str, type] = {"integer": int, "number": float}
    names = (flag_of(name), *others, name)
    kind = kinds.get(info.type.removesuffix(" or none"), str)
    return click.option(*names, type=kind, metavar=metavar, multiple=multiple, help=text)


def key_help(key: tuple[str, ...]) -> str:
    """The help of a configuration key."""
    from smollm3_finetune.config.schema import key_info

    return key_info(key).help


def run_options(f: F) -> F:
    """The options that describe a training run."""
    f = plugin_options(f)
    f = click.option(
        "--set", "assign", multiple=True, metavar="A.B=C", help="Set any configuration key, e.g. train.save_every=200."
    )(f)
    f = click.option("--config", "config_file", metavar="FILE", help="Read settings from a YAML file.")(f)
    f = config_flag("preset", "NAME", multiple=True)(f)
    f = config_flag("seed", "N")(f)
    f = config_flag("dtype", "NAME")(f)
    f = config_flag("device", "NAME")(f)
    f = config_flag("max_length", "TOKENS")(f)
    f = config_flag("learning_rate", "X", "--lr")(f)
    f = config_flag("batch_size", "ROWS")(f)
    f = config_flag("epochs", "X")(f)
    f = config_flag("max_time", "TIME")(f)
    f = config_flag("max_steps", "N")(f)
    f = config_flag("output", "DIR")(f)
    for section in ("tracker", "launcher", "optimizer"):
        f = click.option(f"--{section}-opt", multiple=True, metavar="K=V", help=f"Set an option of the {section}.")(f)
        f = config_flag(section, "NAME")(f)
    f = config_flag("formatter", "NAME")(f)
    f = click.option("--ship-as-opt", multiple=True, metavar="K=V", help="Set an option of the format of --ship-as.")(f)
    f = config_flag("ship_as", "NAME")(f)
    for section in ("objective", "adapter", "quant", "loader"):
        word = {"quant": "quantizer"}.get(section, section)
        f = click.option(f"--{section}-opt", multiple=True, metavar="K=V", help=f"Set an option of the {word}.")(f)
        f = config_flag(section, "NAME")(f)
    f = config_flag("validation", "PATH", multiple=True)(f)
    f = config_flag("data", "PATH", multiple=True)(f)
    f = click.option("--fresh-adapter", "fresh_adapter", is_flag=True, default=None, help=key_help(("fresh_adapter",)))(
        f
    )
    f = config_flag("start_from", "RUN|ADAPTER")(f)
    return config_flag("model", "REF")(f)
