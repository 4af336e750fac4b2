"""Operations of a layer with gptqmodel's own kernels: only the forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from smollm3_finetune.api import LinearOps, Op, UnsupportedOp


@dataclass(frozen=True)
class ForwardOnly:
    """The operations of one layer of gptqmodel."""

    layer: Any

    @property
    def ops(self) -> frozenset[Op]:
        return frozenset({Op.FORWARD})

    @property
    def forward_rtol(self) -> float:
        """2e-2, because the CPU kernel rounds scales and activations to bfloat16."""
        return 2e-2

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.layer.out_features), int(self.layer.in_features)

    def read_weight(self) -> Tensor:
        raise UnsupportedOp("gptqmodel's kernels cannot return the weight", hint="--quant-opt kernel=dequantize")


def ops_for(layer: nn.Module) -> LinearOps | None:
    """The operations of a quantized layer; None for any other layer."""
    return ForwardOnly(layer) if hasattr(layer, "in_features") and hasattr(layer, "qweight") else None
