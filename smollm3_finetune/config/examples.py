"""The hint for an invalid value: a value of the option that can be typed, and the option's description."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from smollm3_finetune.errors import did_you_mean
from smollm3_finetune.model_files.dtypes import full_name

WHOLE = 100
"""The example for a whole number without a default, if its limits allow it."""


def value_hint(info: Any, annotation: Any, place: str, wrong: Any) -> str | None:
    """The hint, such as `for example: --epochs 1; about this option: Passes over the rows.`; None if there is nothing.

    `place` is where the value was given: `--epochs`, `--adapter-opt rank`, or `run.yaml:3: train.epochs`.
    """
    parts = []
    if (example := example_of(info, annotation, wrong)) is not None:
        parts.append(f"for example: {_assigned(place, example)}")
    if info.help:
        parts.append(f"about this option: {info.help}")
    return "; ".join(parts) or None


def _assigned(place: str, value: str) -> str:
    if not place.startswith("--"):
        return f"{place.rpartition(': ')[2].rpartition('.')[2]}: {value}"
    flag, key, name = place.partition(" ")
    return f"{flag} {name}={shlex.quote(value)}" if key else f"{flag} {shlex.quote(value)}"


def example_of(info: Any, annotation: Any, wrong: Any) -> str | None:
    """A valid value as text: the word that was probably meant, else the default, else one within the limits."""
    kinds = list((get_args(annotation) if get_origin(annotation) is not Literal else [annotation]) or [annotation])
    words = [word for k in kinds if get_origin(k) is Literal for word in get_args(k)]
    wrong = full_name(wrong) if isinstance(wrong, str) else wrong
    near = did_you_mean(wrong, [w for w in words if isinstance(w, str)]) if isinstance(wrong, str) else None
    default = info.default
    if near is not None:
        return near
    if isinstance(default, bool | int | float) or (isinstance(default, str) and default):
        return _text(default)
    if get_origin(annotation) in (dict, Mapping):
        return _mapping(info, get_args(annotation)[1])
    if words:
        return _text(words[0])
    if bool in kinds:
        return _text(True)
    return _whole(info) if int in kinds else None


def _mapping(info: Any, values: Any) -> str | None:
    """The first entry of the default, else one with a value of this type."""
    if info.default:
        name, value = next(iter(info.default.items()))
        return f"{{{name}: {_text(value)}}}"
    shown = {int: "1", float: "0.5", str: "TEXT"}.get(values)
    return f"{{NAME: {shown}}}" if shown else None


def _whole(info: Any) -> str | None:
    least = info.limits.get("ge", info.limits.get("gt", 0) + 1)
    value = min(max(WHOLE, least), info.limits.get("le", WHOLE), info.limits.get("lt", WHOLE + 1) - 1)
    return None if value % info.limits.get("multiple_of", 1) else _text(int(value))


def _text(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
