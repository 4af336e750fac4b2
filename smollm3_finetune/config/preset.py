"""Presets: published settings of training runs, beneath everything that a user sets.

A preset is a file in `presets/`, in the form of run.yaml, with the source of each value. The key `preset` of a
configuration names one or several; of two that set a key, the later one wins. A run saves its resolved values, so a
preset that changes in a later version changes no run that was started with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from smollm3_finetune.config.preset_names import preset_file, preset_names
from smollm3_finetune.config.schema import COMPONENT_SECTIONS
from smollm3_finetune.config.settings import GIVEN, PRESET, LoadedConfig, Setting, file_settings
from smollm3_finetune.errors import (
    ConfigError,
    MissingRequirementError,
    Problems,
    SmolLM3Error,
    UnknownComponentError,
    did_you_mean,
)

ORIGIN = "preset "
"""The beginning of the origin of a value that a preset sets."""


def preset_settings(name: str, origin: str = "--preset") -> list[Setting]:
    """The settings of a preset, each with the origin `preset NAME`. Raises ConfigError if it does not exist."""
    file = preset_path(name, origin)
    return [replace(s, origin=f"{ORIGIN}{name}") for s in file_settings(file)]


def preset_path(name: str, origin: str = "") -> Path:
    """The file of a preset. Raises ConfigError, with the origin of the name, if there is none of this name."""
    known = preset_names()
    if name not in known:
        near = did_you_mean(name, known)
        where = f"{origin}: " if origin and not origin.startswith("--") else ""
        raise ConfigError(
            f"{where}there is no preset {name!r}",
            hint=f"did you mean {near!r}?" if near else f"presets: {', '.join(known)}",
        )
    return Path(preset_file(name))


def with_presets(layers: Sequence[Sequence[Setting]]) -> list[list[Setting]]:
    """The layers of a configuration with those of the presets that they name beneath them.

    A preset that the configuration of a run names is in its values already. Raises ConfigError for a preset that does
    not exist, or has no effect.
    """
    named = [(layer, s) for layer in layers for s in layer if s.key == PRESET and s.given]
    if not named:
        return [list(layer) for layer in layers]
    resolved = [layer for layer in layers if any(s.key == GIVEN and s.value is not None for s in layer)]
    stated = [s for layer, s in named if not any(layer is r for r in resolved)]
    below: list[list[Setting]] = []
    if stated:
        names = _names(stated[-1])
        below = [preset_settings(name, stated[-1].origin) for name in names]
        if names and resolved:
            file = next(s.origin for s in resolved[0] if s.key == GIVEN).rpartition(":")[0]
            raise ConfigError(
                f"{stated[-1].origin} has no effect: {file or 'the configuration'} is that of a run, which sets every "
                "value",
                hint=f"omit {stated[-1].origin}",
            )
    if _names_optimizer(layers):  # then the run has no other
        below = [[s for s in layer if s.key != ("train", "optimizer")] for layer in below]
    return [*below, *([replace(s, given=False) if s.key == PRESET else s for s in layer] for layer in layers)]


def _names_optimizer(layers: Sequence[Sequence[Setting]]) -> bool:
    """Whether these layers name the optimizer of a plugin."""
    named = [s.value for layer in layers for s in layer if s.key == ("optimizer", "name")]
    return bool(named) and named[-1] is not None


def _names(setting: Setting) -> list[str]:
    """The names of presets in a value; empty if it is null, or invalid, which is reported elsewhere."""
    value = setting.value
    if isinstance(value, Mapping) or value is None:
        return []
    entries = value if isinstance(value, list | tuple) else str(value).split(",")
    return [name for name in (str(entry).strip() for entry in entries) if name and name != "none"]


@contextlib.contextmanager
def presets_named(loaded: LoadedConfig) -> Iterator[None]:
    """Inside the context, the error for a component that is not installed names the preset that selects it."""
    try:
        yield
    except SmolLM3Error as e:
        for one in e.problems if isinstance(e, Problems) else (e,):
            if isinstance(one, UnknownComponentError | MissingRequirementError):
                for origin in _origins(loaded, one.message):
                    one.hint = f"{one.hint}; {origin} selects it" if one.hint else f"{origin} selects it"
        raise


def _origins(loaded: LoadedConfig, message: str) -> Iterable[str]:
    for section in COMPONENT_SECTIONS:
        origin, name = loaded.origin(f"{section}.name"), getattr(loaded.config, section).name
        if origin.startswith(ORIGIN) and repr(name) in message:
            yield origin


def preset_text(name: str) -> str:
    """The file of a preset, with its sources. Raises ConfigError if there is none of this name."""
    return preset_path(name).read_text(encoding="utf-8")
