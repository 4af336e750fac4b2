"""Configuration values that components suggest; those that the user set take precedence."""

from __future__ import annotations

from collections.abc import Sequence

from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.load import LoadedConfig, Setting, assemble
from smollm3_finetune.errors import PluginError, Problems, SmolLM3Error

SUGGESTIBLE = ("data.max_length", "calibration.rows", "calibration.length")
"""The keys that a component may suggest in addition to those of `train`; none of them selects rows."""


def may_be_suggested(key: str) -> bool:
    return key.startswith("train.") or key in SUGGESTIBLE


def with_suggestions(loaded: LoadedConfig, components: Sequence[SelectedComponent]) -> LoadedConfig:
    """The configuration with the suggestions of the selected components, below the values that the user set.

    Raises PluginError if a component suggests another key: rows are read before suggestions apply.
    """
    for c in components:
        for key in c.component.spec.suggests:
            if not may_be_suggested(key):
                raise PluginError(
                    f"{c.component.title} suggests {key}, but components may only suggest train.… and "
                    f"{', '.join(SUGGESTIBLE)}",
                    hint="report this to the plugin's author",
                )
    layers = [
        [
            Setting(key=tuple(key.split(".")), value=value, origin=f"suggested by {c.component.title}")
            for key, value in c.component.spec.suggests.items()
        ]
        for c in components
    ]
    for c, layer in zip(components, layers, strict=True):
        if layer and c.component.origin != "built in":
            try:
                assemble([layer])
            except SmolLM3Error as e:
                first = e.problems[0] if isinstance(e, Problems) else e
                raise PluginError(first.message, hint=f"report this to the author of {c.component.distribution}") from e
    return assemble([*layers, loaded.settings])
