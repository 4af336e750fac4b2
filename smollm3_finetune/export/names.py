"""The exporter and the output directory that a user names, checked before anything is opened. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from smollm3_finetune.components.kinds import EXPORTER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent, choose
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError

WEIGHT_FILES = ("safetensors", "bin")
"""Extensions of weight files, beside the names of the exporter."""


def choose_exporter(
    registry: Registry, config: ComponentConfig, origins: Mapping[str, str] | None = None
) -> SelectedComponent:
    """The exporter that `--to` names, with its options validated. Raises ConfigError if there is no name."""
    if config.name is None:
        names = ", ".join(sorted(c.spec.name for c in registry.of(EXPORTER)))
        raise ConfigError(f"{EXPORTER.flag} is required", hint=f"{EXPORTER.flag} NAME; installed: {names}")
    return choose(registry, EXPORTER, config.name, config, origins)


def check_is_directory(output: Path, choice: SelectedComponent) -> None:
    """Raises ConfigError if `output` looks like the name of a file, or is one."""
    spec = choice.component.spec
    extensions = {part for name in (spec.name, *spec.aliases) for part in name.split("-")} | {*WEIGHT_FILES}
    suffix = output.suffix.lstrip(".").lower()
    if output.is_file() or suffix in extensions:
        instead = output.with_suffix("") if output.suffix else output.with_name(f"{output.name}-{spec.name}")
        raise ConfigError(
            f"--output {output} names a file, but it is the directory into which {choice.component.title} writes",
            hint=f"--output {instead}",
        )
