"""hqq's linear layer with a fixed forward.

Source: hqq 0.2.8 `hqq.core.quantize` (HQQLinear). Method: Badri and Shaji, "Half-Quadratic Quantization of Large
Machine Learning Models", 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from torch import Tensor, nn

from smollm3_finetune.api import FrozenTensor, frozen_linear
from smollm3_hqq.memory import PER_NUMBER
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
    * Codes, scales and zero points follow the model when it is moved, and FSDP divides them.
    """

    codes = FrozenTensor()
    scale = FrozenTensor()
    zero = FrozenTensor()
    meta: dict[str, Any]

    def __init__(self, linear: nn.Linear, options: HQQOptions, device: str) -> None:
        """Quantizes `linear` on `device`, and takes its weight away."""
        bias, linear.bias = linear.bias, None
        super().__init__(linear, quant_config=_config(options), compute_dtype=torch.float32, device=device)
        # hqq creates it in inference mode; such a tensor cannot be changed or saved for a backward pass outside of it.
        self.meta["zero"] = self.meta["zero"].clone()
        self._hold()
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device), requires_grad=False)

    def stored(self) -> dict[str, Tensor]:
        """hqq's own state: codes, scales, zero points and their description, each as a tensor."""
        return {name: value for name, value in self.state_dict().items() if name != "bias"}

    @classmethod
    def restored(cls, linear: nn.Linear, state: Mapping[str, Tensor], options: HQQOptions, device: str) -> Linear:
        """The layer whose `stored()` is `state`, on `device`, with the bias of `linear`."""
        layer = cls.__new__(cls)
        super(cls, layer).__init__(
            None, quant_config=_config(options), compute_dtype=torch.float32, device=device, initialize=False
        )
        layer.load_state_dict(dict(state))
        layer._hold()
        bias = linear.bias
        layer.bias = None if bias is None else nn.Parameter(bias.detach().to(device), requires_grad=False)
        return layer

    @classmethod
    def packed(
        cls, linear: nn.Linear, codes: Tensor, scale: Tensor, zero: Tensor, options: HQQOptions, device: str
    ) -> Linear:
        """The layer of the shape of `linear` with these codes, as `pack` returns them. Has no bias.

        Raises ValueError if the tensors do not have the shapes and the types of such a layer.
        """
        shape = (linear.out_features, linear.in_features)
        size, bits, axis = options.group_size, options.bits, options.axis
        rows, columns = shape if size is None else ((shape[0] * shape[1] // size, size)[:: 1 if axis == 1 else -1])
        numbers = -(-rows // PER_NUMBER[bits])
        expected = {
            "W_q": (codes, (numbers, columns), Quantizer.unpack_view_dtype[Quantizer.bit_to_packing[bits]]),
            "scale": (scale, (rows, 1) if axis == 1 else (1, columns), torch.float32),
            "zero": (zero, (rows, 1) if axis == 1 else (1, columns), torch.float32),
        }
        for name, (tensor, wanted, dtype) in expected.items():
            if tuple(tensor.shape) != wanted or tensor.dtype != dtype:
                raise ValueError(f"has a tensor {name} of another shape or type than {wanted} {dtype}")
        layer = cls.__new__(cls)
        super(cls, layer).__init__(
            None, quant_config=_config(options), compute_dtype=torch.float32, device=device, initialize=False
        )
        packing = Quantizer.bit_to_packing[bits]
        layer.W_q = nn.Parameter(codes.to(device), requires_grad=False)
        layer.meta = {
            "nbits": bits,
            "group_size": size,
            "shape": torch.Size(shape),
            "scale": scale.to(device),
            "zero": zero.to(device),
            "axis": axis,
            "packing": packing,
            "unpack_view_dtype": Quantizer.unpack_view_dtype[packing],
            "view_as_float": False,
            "quant_scale": False,
            "quant_zero": False,
            "compute_dtype": torch.float32,
        }
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.bias, layer.ready = None, True
        layer._hold()
        return layer

    def _hold(self) -> None:
        """Take the tensors over from hqq."""
        self.codes = self._parameters.pop("W_q").detach()
        self.scale, self.zero = self.meta.pop("scale"), self.meta.pop("zero")

    def described(self) -> dict[str, Any]:
        """hqq's description of the codes, with the scales and zero points."""
        return {**self.meta, "scale": self.scale, "zero": self.zero}

    def dequantize(self) -> Tensor:
        """The weight (out, in), as a new float32 tensor."""
        weight: Tensor = Quantizer.dequantize(self.codes, self.described())
        return weight

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """hqq's own state."""
        meta, self.meta = self.meta, self.described()
        self.W_q = nn.Parameter(self.codes, requires_grad=False)
        try:
            state: dict[str, Any] = super().state_dict(*args, **kwargs)
        finally:
            self.meta = meta
            del self.W_q
        return state

    @staticmethod
    def pack(codes: Tensor, options: HQQOptions) -> Tensor:
        """Pack the matrix of groups of codes as hqq does."""
        packed: Tensor = Quantizer.pack[Quantizer.bit_to_packing[options.bits]](codes)
        return packed

    @classmethod
    def set_backend(cls, backend: Any) -> None:
        """Does nothing. hqq calls it whenever it creates a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.dequantize, self.bias)


def _config(options: HQQOptions) -> dict[str, Any]:
    config: dict[str, Any] = BaseQuantizeConfig(nbits=options.bits, group_size=options.group_size, axis=options.axis)
    return config
