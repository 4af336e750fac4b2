"""Frozen tensors of quantized layers, which FSDP 2 may divide among processes. torch is imported when one is stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "frozen_"
"""The names of the Parameters begin with it."""
_FORMATS, _MOVED = "_frozen_formats", "_frozen_moved"


class FrozenTensor:
    """An attribute of a layer class: a tensor of any dtype and shape that is not trained, or None.

    The layer holds it as a Parameter with its bytes, in one dimension. So FSDP 2 divides it evenly among the processes,
    whatever its shape, and no dtype of a run or of mixed precision changes its values. It gathers the tensors of a
    block before its forward and before its backward, and releases them afterwards.

        class Int4Linear(nn.Module):
            codes = FrozenTensor()
            scales = FrozenTensor()

            def __init__(self, codes, scales):
                super().__init__()
                self.codes, self.scales = codes, scales  # not copied if they are contiguous

    Reading the attribute returns a view, without a copy. The Parameter of `codes` is `frozen_codes`. Assign a plain
    tensor, not a Parameter. A layer provides `Op.SHARDS` if it fulfills these conditions:

    * All of its large tensors are held so.
    * Its code reads the attribute each time it needs it, in the forward and in the backward. A function that is called
      in the backward, as `frozen_linear` calls `dequantize`, refers to the layer and not to the tensor.
    * It keeps nothing that depends on the values: no dequantized weight, no repacked copy, no view.
    * It changes no value in place: the next gathering would restore the old one.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.parameter = name, f"{PREFIX}{name}"

    def __set__(self, layer: nn.Module, tensor: Tensor | None) -> None:
        import torch

        formats = layer.__dict__.setdefault(_FORMATS, {})
        if tensor is None:
            formats[self.name] = None
            layer.register_parameter(self.parameter, None)
            return
        tensor = tensor.detach().contiguous()
        formats[self.name] = tensor.dtype, tensor.shape
        values = tensor.reshape(-1).view(torch.uint8)
        layer.register_parameter(self.parameter, torch.nn.Parameter(values, requires_grad=False))

    def __get__(self, layer: Any, owner: type) -> Any:
        """The tensor. Raises RuntimeError while FSDP keeps only a part of it in this process."""
        if layer is None:
            return self
        found = layer.__dict__.get(_FORMATS, {}).get(self.name)
        if found is None:
            return None
        dtype, shape = found
        values = self.held(layer)
        if hasattr(values, "device_mesh"):
            raise RuntimeError(
                f"{type(layer).__name__}.{self.name} is divided among the processes; it can be read in a forward or "
                "backward of the layer, or after the weights were gathered"
            )
        return values.view(dtype).view(shape)

    def held(self, layer: nn.Module) -> Any:
        """The Parameter with the bytes, of which FSDP may keep only a part in this process; for its device."""
        holder, name = layer, self.parameter
        while (moved := holder.__dict__.get(_MOVED, {}).get(name)) is not None:
            holder, name = moved
        return holder._parameters[name]


def hold_for(owner: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Make the frozen tensors of layers that are not submodules Parameters of `owner`, where FSDP finds them.

    The layers read them there. `owner` must call its layers only inside its own forward, or that of its parent.
    """
    for number, layer in enumerate(layers):
        for part, module in enumerate(layer.modules()):
            moved = module.__dict__.setdefault(_MOVED, {})
            for name in [n for n in module._parameters if n.startswith(PREFIX)]:
                own = f"{PREFIX}{number}_{part}_{name.removeprefix(PREFIX)}"
                owner.register_parameter(own, module._parameters.pop(name))
                moved[name] = owner, own
