"""Values that components suggest, put below what the user set."""

from __future__ import annotations

from collections.abc import Sequence

from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.load import LoadedConfig, Setting, assemble
from smollm3_finetune.errors import PluginError

SUGGESTIBLE = ("data.max_length", "calibration.rows", "calibration.length")
"""What a component may suggest beside the keys of `train`: nothing that decides which rows there are."""


def may_be_suggested(key: str) -> bool:
    return key.startswith("train.") or key in SUGGESTIBLE


def with_suggestions(loaded: LoadedConfig, components: Sequence[SelectedComponent]) -> LoadedConfig:
    """The configuration again, with what the chosen components suggest beneath what the user set.

    Raises PluginError for a suggestion that would come too late: rows are read before.
    """
    for c in components:
        for key in c.component.spec.suggests:
            if not may_be_suggested(key):
                raise PluginError(
                    f"{c.component.title} suggests {key}; components may suggest train.… and {', '.join(SUGGESTIBLE)}",
                    hint="tell the plugin's author",
                )
    layers = [
        [
            Setting(key=tuple(key.split(".")), value=value, origin=f"suggested by {c.component.title}")
            for key, value in c.component.spec.suggests.items()
        ]
        for c in components
    ]
    return assemble([*layers, loaded.settings])
