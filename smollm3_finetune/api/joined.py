"""A fused linear layer whose parts a checkpoint stores as layers of their own. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smollm3_finetune.api.capabilities import Op
from smollm3_finetune.api.frozen_tensor import hold_for
from smollm3_finetune.api.models import LinearOps


class JoinedLinear(nn.Module):  # type: ignore[misc]
    """y = [x W₁ᵀ, x W₂ᵀ, …] + b: the outputs of the parts, which are quantized layers without bias, follow one another.

    The parts are not submodules, so that adapters for linear layers do not attach to them. Their frozen tensors are
    Parameters of this layer, so that FSDP finds them.
    """

    def __init__(self, parts: Sequence[nn.Module], in_features: int, out_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self._parts = tuple(parts)
        self.in_features, self.out_features = in_features, out_features
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        hold_for(self, self._parts)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, out)."""
        y = torch.cat([part(x) for part in self._parts], dim=-1)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> JoinedLinear:
        super()._apply(fn, recurse)
        for part in self._parts:
            part._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> JoinedLinear:
        super().train(mode)
        for part in self._parts:
            part.train(mode)
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {len(self._parts)} × {type(self._parts[0]).__name__}"


@dataclass(frozen=True)
class JoinedOps:
    """The operations of a `JoinedLinear`: those that all its parts provide."""

    layer: JoinedLinear
    parts: Sequence[LinearOps]

    @property
    def ops(self) -> frozenset[Op]:
        return frozenset.intersection(*(part.ops for part in self.parts))

    @property
    def forward_rtol(self) -> float:
        return max(part.forward_rtol for part in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        return self.layer.out_features, self.layer.in_features

    def read_weight(self) -> Tensor:
        """The weight (out, in), as a new tensor."""
        return torch.cat([part.read_weight() for part in self.parts])


def ops_with_joined(ops_for: Callable[[nn.Module], LinearOps | None]) -> Callable[[nn.Module], LinearOps | None]:
    """`ops_for`, for joined layers too."""

    def of(layer: nn.Module) -> LinearOps | None:
        if not isinstance(layer, JoinedLinear):
            return ops_for(layer)
        parts = [ops_for(part) for part in layer._parts]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            raise TypeError("ops_for() returns None for a part of a fused layer, as if it were not quantized")
        return JoinedOps(layer, known)

    return of
