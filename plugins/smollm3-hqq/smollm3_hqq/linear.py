"""hqq's linear layer, held to one way of computing, and what can be done with it.

Source: hqq 0.2.8 `hqq.core.quantize` (HQQLinear, HQQMatmulNoCacheMul). Method: Badri and Shaji, "Half-Quadratic
Quantization of Large Machine Learning Models", 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, HQQMatmulNoCacheMul
from torch import Tensor, nn

from smollm3_finetune.api import DequantizingOps, LinearOps
from smollm3_hqq.options import HQQOptions


class Linear(HQQLinear):  # type: ignore[misc]  # hqq has no types
    """y = x Wᵀ + b, with W (out, in) dequantized from hqq's codes in the forward, and again in the backward.

    What differs from hqq's own layer:

    * `HQQLinear.set_backend` exchanges the forward of all layers in the process, some for one without a gradient;
      this one keeps its own.
    * Scales and zero points stay in float32, as they were found. hqq casts them to the compute dtype; bfloat16 holds
      a zero point near 128 to within half a step of the codes.
    * The weight is cast to the dtype of what it is multiplied by, since under autocast the gradient comes back in
      another dtype than the input had.
    * The bias is a Parameter, as in any linear layer, and not a tensor that hqq cloned with its history.
    * Scales and zero points follow the codes when a model is moved.
    """

    def __init__(self, linear: nn.Linear, options: HQQOptions, device: str) -> None:
        """Quantizes `linear`, whose weight is taken from it, on `device`."""
        bias, linear.bias = linear.bias, None
        config = BaseQuantizeConfig(nbits=options.bits, group_size=options.group_size, axis=options.axis)
        super().__init__(linear, quant_config=config, compute_dtype=torch.float32, device=device)
        # hqq finds it in inference mode; outside, such a tensor cannot be written to or saved for a backward pass.
        self.meta["zero"] = self.meta["zero"].clone()
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device), requires_grad=False)

    @classmethod
    def set_backend(cls, backend: Any) -> None:
        """Does nothing: hqq calls it whenever it makes a layer."""

    def matmul(self, x: Tensor, transpose: bool = True) -> Tensor:
        """x (…, in) to (…, out), or with `transpose` false (…, out) to (…, in)."""
        weight = self.dequantize().to(x.dtype)
        return torch.matmul(x, weight.t() if transpose else weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = HQQMatmulNoCacheMul.apply(x, self.matmul, None)
        return y if self.bias is None else y + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear:
        super()._apply(fn, recurse)
        for name in ("scale", "zero"):
            self.meta[name] = self.meta[name].to(self.W_q.device)
        return self


def ops_in(dtype: torch.dtype) -> Callable[[nn.Module], LinearOps | None]:
    """`Base.ops_for` of a model that computes in `dtype`."""
    return lambda layer: DequantizingOps(layer, Linear.dequantize, dtype) if isinstance(layer, Linear) else None
