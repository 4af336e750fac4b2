"""bitsandbytes' 8-bit layer with its tensors held as Parameters of bytes, so that FSDP 2 divides them."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from smollm3_finetune.api import FrozenTensor


class DequantizingState(bnb.MatmulLtState):  # type: ignore[misc]  # bitsandbytes has no types
    """The state of a layer that uses the training code path in eval mode too.

    On a CPU, bitsandbytes multiplies by the dequantized weight in training. In eval mode it first rounds the
    activations to 8 bits, which is not faster on a CPU: evaluation and generation would not compute the function that
    was trained.
    """

    @property
    def is_training(self) -> bool:
        return True

    @is_training.setter
    def is_training(self, value: bool) -> None: ...


class FrozenLinear8bit(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """y = x Wᵀ + b with the kernels of bitsandbytes.

    Codes and scales are Parameters. bitsandbytes keeps them as attributes of its own Parameter class until the first
    forward, and of the layer's state afterwards, where FSDP does not find them.
    """

    codes = FrozenTensor()
    scales = FrozenTensor()

    @classmethod
    def hold(cls, layer: Any) -> None:
        """Turn a quantized layer of bitsandbytes, before its first forward, into one of this class."""
        weight = layer._parameters.pop("weight")
        layer.__class__ = cls
        layer.state.__class__ = DequantizingState
        layer.codes, layer.scales = weight.data if weight.CB is None else weight.CB, weight.SCB

    def dense(self) -> Tensor:
        """The weight (out, in): codes times row scale / 127, as a new float32 tensor.

        Source: bitsandbytes 0.50 `autograd._functions.MatMul8bitFp`, with the same order of operations.
        """
        weight: Tensor = self.codes.to(torch.float32)
        return weight.mul_(self.scales.to(torch.float32).unsqueeze(1).mul(1.0 / 127.0))  # (out, in) * (out, 1)

    @property
    def device(self) -> torch.device:
        """Known also while FSDP keeps only a part of the codes here."""
        device: torch.device = FrozenLinear8bit.codes.held(self).device
        return device

    @property
    def weight(self) -> nn.Parameter:
        """The codes (out, in)."""
        return nn.Parameter(self.codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        state = copy.copy(self.state)
        state.CB, state.SCB, state.is_training = self.codes, self.scales, self.training
        y: Tensor = bnb.matmul(x, self.codes, bias=bias, state=state)
        return y

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The tensors of bitsandbytes' checkpoints."""
        destination[f"{prefix}weight"] = self.codes
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()
        destination[f"{prefix}SCB"] = self.scales
        destination[f"{prefix}weight_format"] = torch.tensor(0, dtype=torch.uint8)  # by rows
