"""Settings: one value each, with its key and its origin; and those of a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.config.schema import COMPONENT_SECTIONS, PLAIN_SECTIONS, RunConfig
from smollm3_finetune.config.yaml12 import read_yaml

DEFAULT = "default"
GIVEN = ("given",)
"""The key that lists the options of components that were set, in a file that has other options too."""
PRESET = ("preset",)
"""The key that names presets."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value, its key (`("train", "max_steps")`) and its origin (`run.yaml:7`)."""

    key: tuple[str, ...]
    value: Any
    origin: str
    given: bool = True
    """Whether a user set the value; False for a default that a run wrote."""


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A validated configuration, and the origin of every value that is not a default."""

    config: RunConfig
    origins: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()

    def origin(self, key: str) -> str:
        return self.origins.get(key, DEFAULT)


def file_settings(path: Path) -> list[Setting]:
    """The settings of a YAML file. Raises ConfigError with file and line."""
    mapping, lines = read_yaml(path)
    return mapping_settings(mapping, lines)


def mapping_settings(
    mapping: Mapping[str, Any], lines: Mapping[tuple[str, ...], str], inside: tuple[str, ...] = ()
) -> list[Setting]:
    """The settings of a mapping in the form of run.yaml; its keys are `inside` another in the file of `lines`."""
    settings = []
    for section, value in mapping.items():
        if value is None and section in PLAIN_SECTIONS:  # a section whose keys are all commented out
            continue
        if isinstance(value, dict) and (section in COMPONENT_SECTIONS or section in PLAIN_SECTIONS):
            for key, inner in value.items():
                where = lines[(*inside, section, key)]
                settings.append(Setting(key=(section, key), value=inner, origin=where))
        elif section in COMPONENT_SECTIONS and (isinstance(value, str) or value is None):
            settings.append(Setting(key=(section, "name"), value=value, origin=lines[(*inside, section)]))
        else:
            settings.append(Setting(key=(section,), value=value, origin=lines[(*inside, section)]))
    return settings
