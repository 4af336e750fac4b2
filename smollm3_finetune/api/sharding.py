"""Quantized layers that FSDP 2 can divide among processes. torch is imported when a function is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def as_shardable(layer: nn.Module, names: Sequence[str]) -> None:
    """Turn tensors of a quantized layer into frozen Parameters, which FSDP 2 divides among the processes of a run.

    Call it while the model is loaded, for each quantized layer of a quantizer that provides `Op.SHARDS`. `names` are
    attributes of `layer` with its large tensors: buffers, plain tensors or Parameters, of any dtype. Small tensors, such
    as a table of 16 values, may stay buffers: each process then keeps all of them.

        as_shardable(layer, ("codes", "scales"))

    FSDP 2 gives each of N processes 1/N of the first dimension, and pads it if it cannot be divided evenly. It gathers
    the tensors of a block before its forward and before its backward, and releases them afterwards. The dtype does not
    change, and no value does. So a layer that shards fulfills these conditions:

    * Its code reads `self.codes` each time it needs it, in the forward and in the backward. A function that is called
      in the backward, as `frozen_linear` calls `dequantize`, holds the layer and not the tensor. Between the calls, the
      attribute is a `DTensor` with the part of this process.
    * Nothing that depends on the values is kept: no dequantized weight, no repacked copy, no view.
    * Shapes, bits and group sizes are Python numbers that were read when the layer was made.
    * No value is changed in place: the next gathering would restore the old one.
    * The first dimension is at least 1, and should be much larger than the number of processes: a tensor of shape
      (1, n) is kept whole by one process.
    * What is computed from a tensor survives the release only if it is a new tensor.

    `read_weight()` is only called while the weights are whole. Raises ValueError for a name that is not a tensor with
    at least one dimension.
    """
    import torch
    from torch import nn

    for name in names:
        tensor: Any = getattr(layer, name, None)
        if not isinstance(tensor, torch.Tensor) or not tensor.ndim:
            raise ValueError(f"{type(layer).__name__} has no tensor {name!r} with at least one dimension")
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(False)
            if tensor.is_contiguous():
                continue
        if name in layer._buffers or name in layer._parameters:
            delattr(layer, name)
        else:
            layer.__dict__.pop(name, None)
        layer.register_parameter(name, nn.Parameter(tensor.detach().contiguous(), requires_grad=False))
