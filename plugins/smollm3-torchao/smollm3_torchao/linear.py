"""A linear layer with torchao's 8-bit weight, which it dequantizes and multiplies by.

Source: torchao 0.18 `quantization.quantize_.workflows.int8.int8_tensor`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from smollm3_finetune.api import frozen_linear

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
    from torchao.quantization import Int8WeightOnlyConfig, PerGroup, PerRow, quantize_


class Int8Linear(nn.Linear):  # type: ignore[misc]
    """y = x Wᵀ + b, with W (out, in) an `Int8Tensor`, dequantized in the forward pass and in the backward pass.

    torchao's own forward multiplies by the codes first and by the scales of rows last, which rounds differently from
    a product with the dequantized weight. Autograd then also keeps the codes of each layer until its backward pass,
    as a dense matrix in the dtype of x.
    """

    def dense(self) -> Tensor:
        """Code · scale (out, in), as a new float32 tensor."""
        weight: Tensor = self.weight.dequantize()
        return weight

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
    layer.__class__ = Int8Linear
    return layer
