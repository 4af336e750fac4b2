"""bitsandbytes' 4-bit layer with its tensors held as Parameters of bytes, so that FSDP 2 divides all of them."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from torch import Tensor, nn

from smollm3_finetune.api import FrozenTensor


class FrozenLinear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]  # bitsandbytes has no types
    """y = x Wᵀ + b with the kernels of bitsandbytes, which forward, backward and `read_weight` use in the same way.

    Differences from bitsandbytes' own layer:

    * Codes, scales and tables are Parameters. bitsandbytes keeps them as attributes of its own Parameter class, which
      FSDP loses, and whose uint8 codes accelerate leaves whole on each process.
    * The weight is dequantized to one dtype, `compute`. bitsandbytes dequantizes to the input's dtype in the forward,
      but to that of the checkpoint in the backward.
    * The layout is never changed. On a CPU with AVX512-BF16, the first forward of bitsandbytes' own layer in eval mode
      repacks it for a kernel that rounds the scales to bfloat16 and has no gradient: training after an evaluation
      would silently lose gradients.
    """

    codes = FrozenTensor()
    absmax = FrozenTensor()
    table = FrozenTensor()
    nested_absmax = FrozenTensor()
    nested_table = FrozenTensor()
    offset = FrozenTensor()

    @classmethod
    def hold(cls, layer: Any, compute: torch.dtype) -> None:
        """Turn a quantized layer of bitsandbytes into one of this class, with the same tensors."""
        weight, layer.quant_state = layer._parameters.pop("weight"), None
        state = copy.copy(weight.quant_state)
        layer.__class__ = cls
        layer.compute_dtype, layer.compute_type_is_set = compute, True
        layer.codes, layer.absmax, layer.table = weight.data, state.absmax, state.code
        state.absmax = state.code = None
        state.dtype = compute
        if state.nested:
            nested = state.state2 = copy.copy(state.state2)
            layer.nested_absmax, layer.nested_table, layer.offset = nested.absmax, nested.code, state.offset
            nested.absmax = nested.code = state.offset = None
        layer._described = state

    def state(self) -> QuantState:
        """bitsandbytes' description of the codes, with the tensors that the layer holds now."""
        state = copy.copy(self._described)
        state.absmax, state.code = self.absmax, self.table
        if state.nested:
            nested = state.state2 = copy.copy(state.state2)
            nested.absmax, nested.code, state.offset = self.nested_absmax, self.nested_table, self.offset
        return state

    def dense(self) -> Tensor:
        """The weight (out, in), as a new tensor in the compute dtype."""
        weight: Tensor = dequantize_4bit(self.codes, self.state())
        return weight.reshape(self.out_features, self.in_features)

    @property
    def weight(self) -> nn.Parameter:
        """bitsandbytes' Parameter, with the tensors that the layer holds."""
        return bnb.nn.Params4bit(self.codes, requires_grad=False, quant_state=self.state(), bnb_quantized=True)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        y: Tensor = bnb.matmul_4bit(x.to(self.compute_dtype), self.codes, bias=bias, quant_state=self.state())
        return y.to(x.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The tensors of bitsandbytes' checkpoints."""
        destination[f"{prefix}weight"] = self.codes
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()
        destination.update({f"{prefix}weight.{k}": v for k, v in self.state().as_dict(packed=True).items()})
