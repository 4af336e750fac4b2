"""A model with two layers of each kind in place of all of them: layers of a kind have the same shapes and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

OF_A_KIND = 2
"""How many layers of a kind are kept, so that tensors that they share are counted once."""
WHICH = ("layer_idx", "layer_id", "idx", "block_idx", "training")
"""Settings of a module that say which layer it is."""


@dataclass(frozen=True)
class Stack:
    """The layers of a model that run one after the other."""

    name: str
    """Of the list of the layers: `model.layers`."""
    chain: tuple[int, ...]
    """For each layer of the complete model, the index of the kept layer that stands for it."""

    def count(self, index: int) -> int:
        """How many layers of the complete model the kept layer `index` stands for."""
        return self.chain.count(index)


@dataclass(frozen=True)
class Reduced:
    """A model with fewer layers."""

    model: PreTrainedModel
    stacks: tuple[Stack, ...] = ()
    whole: bool = False
    """Whether no layer was left out."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """The name of each kept layer, such as `model.layers.1`, and how many layers it stands for."""

    def times(self, name: str) -> int:
        """How many tensors of the complete model a tensor or module of the reduced one stands for, by its name."""
        for layer, count in self.counts.items():
            if name == layer or name.startswith(f"{layer}."):
                return count
        return 1


def reduce_layers(model: PreTrainedModel, *, whole: bool = False) -> Reduced:
    """Drop layers from a model without weights; changes `model`. With `whole`, all layers are kept and counted."""
    from torch import nn

    stacks: list[Stack] = []
    counts: dict[str, int] = {}
    found = list(_lists(model))
    whole = whole or len(found) != 1  # the layers of several lists may alternate
    for name, layers in found:
        kinds: dict[Any, list[int]] = {}
        kept: list[int] = []
        chain = []
        for index, layer in enumerate(layers):
            same = kinds.setdefault((index == 0, _kind(layer)), [])  # the input of the first may need no gradient
            if whole or len(same) < OF_A_KIND:
                same.append(len(kept))
                kept.append(index)
            chain.append(same[-1])
        stack = Stack(name, tuple(chain))
        stacks.append(stack)
        counts |= {f"{name}.{i}": stack.count(i) for i in range(len(kept))}
        if len(kept) < len(layers):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, nn.ModuleList(layers[i] for i in kept))
            _shorten(model, len(layers), kept)
    return Reduced(model=model, stacks=tuple(stacks), whole=whole, counts=counts)


def names_layers(options: Any) -> bool:
    """Whether options of a component choose layers by their numbers: such a model must not be reduced."""
    values = getattr(options, "__dict__", {}).values()
    return any(_has_number(v) for v in values if isinstance(v, tuple | list | Mapping))


def _has_number(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_number, (*value, *value.values())))
    if isinstance(value, tuple | list):
        return any(map(_has_number, value))
    if isinstance(value, str):
        return re.search(r"(^|\W)\d+(\W|$)", value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The outermost lists of modules of one class."""
    from torch import nn

    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        alike = isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(m) for m in module}) == 1
        if alike and not inside and any(True for _ in module[0].parameters()):
            found.append(name)
            yield name, module


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """What layers of one kind have in common: classes, settings, and shapes of their tensors."""
    about: list[Any] = []
    for name, module in layer.named_modules():
        settings = {
            k: v for k, v in vars(module).items()
            if isinstance(v, int | float | str | bool | None) and k not in WHICH and not k.startswith("_")
        }  # fmt: skip
        about.append((name, type(module), tuple(sorted(settings.items(), key=lambda kv: kv[0]))))
    about += [(n, tuple(t.shape), t.dtype) for n, t in (*layer.named_parameters(), *layer.named_buffers())]
    return tuple(about)


def _shorten(model: PreTrainedModel, count: int, kept: list[int]) -> None:
    """Make the config describe the kept layers."""
    config = model.config.get_text_config()
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(config, name, type(value)(value[i] for i in kept))
    for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if vars(config).get(name) == count:
            setattr(config, name, len(kept))
