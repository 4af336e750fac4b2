"""Options and steps that several verbs share. Light: everything heavy is imported inside functions."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    pass

F = TypeVar("F", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A range of numbers that neither `nan` nor `inf` is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and ctx.find_root().obj is not None:
        ctx.find_root().obj.debug = True


def debug_option(f: F) -> F:
    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks of errors."
    )(f)


def plugin_options(f: F) -> F:
    """`-p`, `--no-plugins` and `--debug`."""
    f = debug_option(f)
    f = click.option("--no-plugins", is_flag=True, help="Use the built-in components only.")(f)
    return click.option(
        "-p", "--plugin", "plugin", multiple=True, metavar="FILE|MODULE|no:NAME",
        help="Use a plugin file or module, or leave an installed plugin out.",
    )(f)  # fmt: skip


def plugin_flags(plugins: Iterable[str]) -> str:
    """What repeats `-p` for these files and modules on a command line that is shown."""
    return "".join(f" -p {shlex.quote(p)}" for p in plugins if not p.startswith("no:"))


def composition_options(f: F, quant: str = "Quantizer; default: what wrote the checkpoint, else none.") -> F:
    """Which model, and how it is opened and loaded."""
    for flag, word in (("--loader-opt", "loader"), ("--quant-opt", "quantizer")):
        f = click.option(flag, multiple=True, metavar="K=V", help=f"An option of the {word}.")(f)
    f = click.option("--dtype", metavar="NAME", help="auto, float32, bfloat16, float16 or float64.")(f)
    f = click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, …")(f)
    f = click.option("--quant", metavar="NAME", help=quant)(f)
    return click.option("--loader", metavar="NAME", help="Loader; default: the one that recognizes the model.")(f)


def run_options(f: F) -> F:
    """Everything that describes a training run."""
    f = plugin_options(f)
    f = click.option("--set", "assign", multiple=True, metavar="A.B=C", help="Any configuration key.")(f)
    f = click.option("--config", "config_file", metavar="FILE", help="A YAML file with any of these settings.")(f)
    f = click.option("--seed", type=int, metavar="N", help="Split, order, dropout, initial values.")(f)
    f = click.option("--max-length", type=int, metavar="TOKENS", help="Longest example.")(f)
    f = click.option("--learning-rate", "--lr", "learning_rate", type=float, metavar="X", help="Peak learning rate.")(f)
    f = click.option("--batch-size", type=int, metavar="ROWS", help="Rows in one forward pass.")(f)
    f = click.option("--epochs", type=float, metavar="X", help="Passes over the rows.")(f)
    f = click.option(
        "--max-steps", type=int, metavar="N", help="Stop after N optimizer steps, whatever --epochs says."
    )(f)
    f = click.option("--output", metavar="DIR", help="Run directory; default: a fresh one under runs/.")(f)
    f = click.option("--formatter", metavar="NAME", help="How rows are read; default: recognized.")(f)
    f = click.option("--objective-opt", multiple=True, metavar="K=V", help="An option of the objective.")(f)
    f = click.option("--objective", metavar="NAME", help="What training minimizes; default: sft.")(f)
    f = click.option("--adapter-opt", multiple=True, metavar="K=V", help="An option of the adapter.")(f)
    f = click.option("--adapter", metavar="NAME", help="What is trained on the model; default: lora.")(f)
    f = composition_options(f)
    f = click.option(
        "--data", multiple=True, metavar="PATH",
        help="Rows: file, glob, directory or Hub id; may be given again; default: the embedded chat dataset.",
    )(f)  # fmt: skip
    return click.option("--model", metavar="REF", help="Hub id, directory or file; default: tiny (embedded).")(f)
