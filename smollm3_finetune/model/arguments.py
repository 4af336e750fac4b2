"""Checks the arguments of Python callers, which can have any type. Wrong ones are ConfigErrors with their names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from smollm3_finetune.api import Purpose
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError, did_you_mean

T = TypeVar("T")
MAX_SEED = 2**32 - 1


def text_or_path(argument: str, value: Any) -> str:
    """The text of a name or a path."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise ConfigError(f"{argument}: expected text or a path, got {value!r}")
    return os.fspath(value)


def purpose_of(value: Any) -> Purpose:
    try:
        return Purpose(value)
    except ValueError as e:
        names = [str(p.value) for p in Purpose]
        near = did_you_mean(str(value), names)
        hint = f"did you mean {near!r}?" if near else None
        raise ConfigError(f"purpose: expected {'|'.join(names)}, got {value!r}", hint=hint) from e


def torch_name(argument: str, value: Any) -> str:
    """The name of a device or dtype; `torch.device` and `torch.dtype` objects are accepted too."""
    if type(value).__module__ == "torch" and type(value).__name__ in ("device", "dtype"):
        return str(value).removeprefix("torch.")
    if not isinstance(value, str):
        raise ConfigError(f"{argument}: expected text, got {value!r}", hint=f'{argument}="auto"')
    return value


def whole_number(argument: str, value: Any, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{argument}: expected an integer, got {value!r}")
    number = int(value.__index__())
    if number < low or (high is not None and number > high):
        limits = f"at least {low}" + (f", at most {high}" if high is not None else "")
        raise ConfigError(f"{argument}: expected an integer ({limits}), got {number}")
    return number


def plugin_names(value: Any) -> tuple[str, ...]:
    """Plugin files and modules; one of them may be given without a list."""
    if isinstance(value, str | os.PathLike):
        return (text_or_path("plugins", value),)
    if not isinstance(value, Sequence):
        raise ConfigError(f"plugins: expected a list of files or modules, got {value!r}", hint='plugins=["plugin.py"]')
    return tuple(text_or_path("plugins", v) for v in value)


def texts(argument: str, value: Any) -> tuple[str, ...]:
    """A list of texts."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{argument}: expected a list of texts, got {value!r}", hint=f'{argument}=["TEXT"]')
    return tuple(value)


def instance(argument: str, value: T | None, cls: type[T]) -> T | None:
    if value is not None and not isinstance(value, cls):
        raise ConfigError(f"{argument}: expected an object of {cls.__module__}.{cls.__qualname__}, got {value!r}")
    return value


def component(argument: str, value: Any, options: Any = None) -> ComponentConfig:
    """A component from a name or from a mapping that holds its name and options."""
    given: Mapping[Any, Any] = value if isinstance(value, Mapping) else {"name": value}
    if not isinstance(options, Mapping | None):
        raise ConfigError(f"{argument}_options: expected a mapping, got {options!r}")
    name = given.get("name")
    if not isinstance(name, str | None):
        raise ConfigError(f"{argument}: expected a name, got {name!r}", hint=f'{argument}={{"name": "NAME"}}')
    merged = {k: v for k, v in given.items() if k != "name"} | dict(options or {})
    return ComponentConfig(name=name, options={str(k): plain(v) for k, v in merged.items()})


def plain(value: Any) -> Any:
    """The value as YAML would give it: mappings with text as keys, lists, paths as text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
