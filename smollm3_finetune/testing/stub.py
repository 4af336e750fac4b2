"""A stub quantizer for testing adapters: its layers provide exactly the operations passed to it.

Each row of a weight is stored as 8-bit integers with one scale. An operation that the adapter did not declare fails:
`read_weight` raises UnsupportedOp, `.weight` does not exist, and the input receives no gradient.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from smollm3_finetune.api import Base, Op, UnsupportedOp, fingerprint
from smollm3_finetune.model.compare import rounded
from smollm3_finetune.testing.small import small_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BITS = 8


class StubLinear(nn.Module):  # type: ignore[misc]  # torch is not checked
    """A quantized linear layer."""

    codes: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, ops: frozenset[Op]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.ops = ops
        weight = linear.weight.detach()  # (out, in)
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (BITS - 1) - 1)  # (out, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("codes", (weight / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if Op.GRAD_INPUT not in self.ops:
            x = x.detach()
        return nn.functional.linear(x, self.codes.to(self.scale.dtype) * self.scale, self.bias)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "a quantized layer has no `.weight`: add Op.DENSE to the needs of the adapter, or add "
                "Op.READ_WEIGHT and call base.ops_for(layer).read_weight()"
            )
        return super().__getattr__(name)


@dataclasses.dataclass(frozen=True)
class StubOps:
    """The view of a `StubLinear`."""

    layer: StubLinear
    forward_rtol: float = 0.0

    @property
    def ops(self) -> frozenset[Op]:
        return self.layer.ops

    @property
    def shape(self) -> tuple[int, int]:
        return self.layer.out_features, self.layer.in_features

    def read_weight(self) -> Tensor:
        if Op.READ_WEIGHT not in self.ops:
            raise UnsupportedOp("the adapter reads a weight of the base, but its descriptor does not need read-weight")
        weight = self.layer.codes.to(self.layer.scale.dtype) * self.layer.scale
        return weight if weight.element_size() >= 4 else weight.float()


@cache
def _dense(dtype: str) -> PreTrainedModel:
    model = small_model(dtype)
    head = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer is not head:
            layer.weight.data = rounded(layer.weight, BITS)
    return model


def stub_dense(dtype: str = "float64") -> PreTrainedModel:
    """The small model with ordinary layers that hold the dequantized weights of the stub's layers; a new copy."""
    model: PreTrainedModel = copy.deepcopy(_dense(dtype))
    return model


def stub_base(needs: Iterable[Op], dtype: str = "float64") -> Base:
    """The small model, quantized, with layers that provide exactly the operations in `needs`.

    If `needs` contains DENSE or GRAD_WEIGHT, the layers are ordinary ones, because no quantized layer provides these.
    """
    ops = frozenset(needs)
    if ops & {Op.DENSE, Op.GRAD_WEIGHT}:
        return Base(model=stub_dense(dtype), fingerprint=fingerprint("stub", "dense", dtype))
    model = small_model(dtype)
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer is not head:
            model.set_submodule(name, StubLinear(layer, ops))
    return Base(
        model=model.eval(),
        fingerprint=fingerprint("stub", dtype),
        ops_for=lambda layer: StubOps(layer) if isinstance(layer, StubLinear) else None,
    )
