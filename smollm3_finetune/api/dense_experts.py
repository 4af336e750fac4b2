"""Stacked weights of experts in a dense model: where they are, and in which layout. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smollm3_finetune.api.experts import ExpertStack
from smollm3_finetune.api.helpers import expert_stacks
from smollm3_finetune.api.models import LinearOps


@dataclass(frozen=True)
class StackedWeight:
    """A stacked weight of experts in a dense model."""

    owner: nn.Module
    name: str
    """In its owner: `gate_up_proj`."""
    transposed: bool

    @property
    def weight(self) -> Tensor:
        weight: Tensor = getattr(self.owner, self.name)
        return weight

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(E, out, in), whatever the layout."""
        experts, first, second = self.weight.shape
        return (experts, second, first) if self.transposed else (experts, first, second)

    def linear(self, expert: int, device: str | None = None) -> nn.Linear:
        """The weight of an expert as a linear layer (out, in) of its own; on the meta device without values."""
        _, out, inputs = self.sizes
        if device == "meta":
            return nn.Linear(inputs, out, bias=False, device="meta", dtype=self.weight.dtype)
        with torch.no_grad():
            weight = self.weight[expert]
            values = (weight.T if self.transposed else weight).clone(memory_format=torch.contiguous_format)
        linear = nn.Linear(inputs, out, bias=False, device="meta")
        linear.weight = nn.Parameter(values, requires_grad=False)
        return linear

    @property
    def interleaved(self) -> bool:
        """Whether the rows of gate and up alternate in one weight (gpt-oss), instead of following one another."""
        return getattr(self.owner, "is_concatenated", True) is False

    def put(
        self, layers: Sequence[nn.Module], ops_for: Callable[[nn.Module], LinearOps | None], dtype: torch.dtype
    ) -> None:
        """Replace the weight by quantized layers (out, in) without bias, one for each expert.

        `ops_for` is that of the base, and `dtype` the one in which the model computes. The owner loops over experts
        from now on.
        """
        delattr(self.owner, self.name)
        self.owner.add_module(self.name, ExpertStack(layers, ops_for, transposed=self.transposed, dtype=dtype))
        config: Any = getattr(self.owner, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"  # the others multiply by the whole tensor, with kernels of its own


def stacked_weights(model: nn.Module) -> dict[str, StackedWeight]:
    """Name to stacked weight, in the modules of `model` that are experts by their class or their place.

    transformers' classes of experts state whether their weights are (E, in, out). Others have that layout if they own
    several weights, of which one takes the hidden size first.
    """
    config: Any = getattr(model, "config", None)
    hidden = getattr(config.get_text_config(), "hidden_size", None) if config is not None else None
    by_owner: dict[str, list[str]] = {}
    for full in expert_stacks(model):
        owner, _, own = full.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(getattr(module, own), nn.Parameter) and "expert" in f"{owner}.{type(module).__name__}".lower():
            by_owner.setdefault(owner, []).append(own)
    found = {}
    for owner, names in by_owner.items():
        module = model.get_submodule(owner)
        shapes = [tuple(getattr(module, own).shape) for own in names]
        stated = getattr(module, "is_transposed", None)
        guessed = len(names) > 1 and shapes[0][1] == hidden != shapes[0][2]
        transposed = guessed if stated is None else bool(stated)
        found.update({f"{owner}.{own}": StackedWeight(module, own, transposed) for own in names})
    return found
