"""A linear layer with torchao's 8-bit weight, which it dequantizes and multiplies by.

Source: torchao 0.18 `quantization.quantize_.workflows.int8.int8_tensor`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smollm3_finetune.api import FrozenTensor, frozen_linear

LOGGERS = ("torchao", "torch.utils._pytree")
"""They log a line for each of torchao's libraries that this machine cannot load; int8 needs none of them."""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the context, these loggers log only errors."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


with quiet():
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, PerGroup, PerRow, quantize_


class Int8Linear(nn.Linear):  # type: ignore[misc]
    """y = x Wᵀ + b, with W (out, in) an `Int8Tensor`, dequantized in the forward pass and in the backward pass.

    torchao's own forward multiplies by the codes first and by the scales of rows last, which rounds differently from
    a product with the dequantized weight. Autograd then also keeps the codes of each layer until its backward pass,
    as a dense matrix in the dtype of x. The tensors inside the `Int8Tensor` are held one by one, because FSDP cannot
    divide torchao's class.
    """

    codes = FrozenTensor()
    scale = FrozenTensor()
    zero = FrozenTensor()
    block: list[int]
    """The rows and columns that share a scale."""

    @property
    def weight(self) -> nn.Parameter:
        """torchao's tensor, with the tensors that the layer holds."""
        return nn.Parameter(self._tensor(), requires_grad=False)

    def dense(self) -> Tensor:
        """Code · scale (out, in), as a new float32 tensor."""
        weight: Tensor = self._tensor().dequantize()
        return weight

    def _tensor(self) -> Int8Tensor:
        return Int8Tensor(self.codes, self.scale, self.block, torch.float32, zero_point=self.zero)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.dense, self.bias)


def quantize(layer: nn.Linear, group_size: int | None, device: str) -> nn.Linear:
    """Turn `layer` into an `Int8Linear` on `device`, and return it.

    The weight is cast to float32 before it is rounded, so the codes do not depend on the dtype of the model; torchao
    does not accept float64.
    """
    layer.weight = nn.Parameter(layer.weight.detach().to(device, torch.float32), requires_grad=False)
    granularity = PerRow() if group_size is None else PerGroup(group_size)
    quantize_(layer, Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False))
    weight: Any = layer._parameters.pop("weight")
    layer.__class__ = Int8Linear
    layer.__dict__.pop("extra_repr", None)  # torchao's reads the weight, which FSDP may have divided
    layer.codes, layer.scale, layer.zero = weight.qdata, weight.scale, weight.zero_point
    layer.block = list(weight.block_size)
    return layer
