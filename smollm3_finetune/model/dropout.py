"""Switches off the dropout of a base before an adapter with dropout of its own is attached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.model_files.dropout import is_dropout

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class SwitchedOff:
    """A base whose dropout was switched off."""

    settings: list[tuple[PreTrainedConfig, str, Any]]
    """The settings that its configs state."""

    @contextlib.contextmanager
    def stated(self) -> Iterator[None]:
        """Inside the context, the configs state the original values, for a `config.json` that is saved."""
        for config, name, value in self.settings:
            setattr(config, name, value)
        try:
            yield
        finally:
            for config, name, value in self.settings:
                setattr(config, name, type(value)(0))


def switch_off(model: nn.Module) -> SwitchedOff:
    """Set every dropout probability of `model` to 0: of its dropout layers, attributes and configs.

    The modules stay in training mode, which gradient checkpointing and some layers need.
    """
    from torch import nn
    from transformers import PreTrainedConfig

    configs: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if is_dropout(name, value):
                setattr(module, name, type(value)(0))
            elif isinstance(value, PreTrainedConfig):  # some layers read it in every forward pass
                configs[id(value)] = value
    settings = [
        (config, name, value)
        for config in configs.values()
        for name, value in list(vars(config).items())
        if is_dropout(name, value) and value > 0
    ]
    for config, name, value in settings:
        setattr(config, name, type(value)(0))
    return SwitchedOff(settings)
