"""hqq's linear layer with a fixed forward.

Source: hqq 0.2.8 `hqq.core.quantize` (HQQLinear). Method: Badri and Shaji, "Half-Quadratic Quantization of Large
Machine Learning Models", 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from torch import Tensor, nn

from smollm3_finetune.api import frozen_linear
from smollm3_hqq.options import HQQOptions


class Linear(HQQLinear):  # type: ignore[misc]  # hqq has no types
    """y = x Wᵀ + b, with W (out, in) dequantized from hqq's codes in the forward pass and in the backward pass.

    Differences from hqq's own layer:

    * `HQQLinear.set_backend` replaces the forward of all layers in the process, with some backends by one without a
      gradient; this layer keeps its own.
    * Scales and zero points stay in float32, in which hqq finds them. hqq casts them to the compute dtype; bfloat16
      rounds a zero point near 128 by up to half a step of the codes.
    * It trains under autocast, where the gradient has a different dtype than the input.
    * The bias is a Parameter, as in any linear layer. hqq keeps a clone with its autograd history.
    * Scales and zero points follow the codes when a model is moved.
    """

    def __init__(self, linear: nn.Linear, options: HQQOptions, device: str) -> None:
        """Quantizes `linear` on `device`, and takes its weight away."""
        bias, linear.bias = linear.bias, None
        config = BaseQuantizeConfig(nbits=options.bits, group_size=options.group_size, axis=options.axis)
        super().__init__(linear, quant_config=config, compute_dtype=torch.float32, device=device)
        # hqq creates it in inference mode; such a tensor cannot be changed or saved for a backward pass outside of it.
        self.meta["zero"] = self.meta["zero"].clone()
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device), requires_grad=False)

    @classmethod
    def set_backend(cls, backend: Any) -> None:
        """Does nothing. hqq calls it whenever it creates a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.dequantize, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear:
        super()._apply(fn, recurse)
        for name in ("scale", "zero"):
            self.meta[name] = self.meta[name].to(self.W_q.device)
        return self
