"""The places of a model where `load_layerwise` puts quantized layers: linear layers, and experts of stacked weights.

Imports torch: `smollm3_finetune.api` imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from smollm3_finetune.api.dense_experts import StackedWeight
from smollm3_finetune.api.models import LinearOps, Progress


@dataclass(frozen=True)
class Place:
    """A dense layer (out, in), and what puts a quantized layer in its place."""

    dense: Callable[[], nn.Linear]
    put: Callable[[nn.Module], None]
    quantized: Callable[[], nn.Module]
    """The layer that was put."""


def quantized_places(
    model: nn.Module,
    layers: Iterable[str],
    stacks: Mapping[str, StackedWeight],
    ops_for: Callable[[nn.Module], LinearOps | None],
    dtype: torch.dtype,
) -> dict[str, Place]:
    """Name to place: the linear `layers`, and each expert of `stacks` as `NAME.0`, `NAME.1`, …

    A stacked weight is freed when the last of its experts is put.
    """
    places = {name: _layer(model, name) for name in layers}
    for name, stack in stacks.items():
        places.update(_experts(name, stack, ops_for, dtype))
    return places


def fill(
    places: Mapping[str, Place], replace: Callable[[nn.Linear], nn.Module], progress: Progress, title: str
) -> None:
    """Put `replace(dense layer)` in every place, with a progress step for each. Dense weights are freed on the way."""
    with progress.task(title, total=len(places)) as task:
        for place in places.values():
            place.put(replace(place.dense()))
            task.advance()


def _layer(model: nn.Module, name: str) -> Place:
    return Place(
        dense=lambda: model.get_submodule(name),
        put=lambda layer: model.set_submodule(name, layer),
        quantized=lambda: model.get_submodule(name),
    )


def _experts(
    name: str, weight: StackedWeight, ops_for: Callable[[nn.Module], LinearOps | None], dtype: torch.dtype
) -> dict[str, Place]:
    count = weight.sizes[0]
    made: dict[int, nn.Module] = {}

    def place(expert: int) -> Place:
        def put(layer: nn.Module) -> None:
            made[expert] = layer
            if len(made) == count:
                weight.put([made[e] for e in range(count)], ops_for, dtype)

        return Place(dense=lambda: weight.linear(expert), put=put, quantized=lambda: made[expert])

    return {f"{name}.{expert}": place(expert) for expert in range(count)}
