"""Quantized linear layers as PEFT sees them: ordinary `nn.Linear`s whose weight is read through `LinearOps`.

PEFT has one class per method and per quantization library. A `LinearView` stands where a quantized layer stood, owns
it, and calls it in its forward, so that PEFT's plain `nn.Linear` class serves every method on every quantizer, and no
library is named here. What it cannot do is be written to: every in-place change of its weight raises.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from smollm3_finetune.api import LinearOps, Op, UnsupportedOp

MERGE_HINT = "save it, and merge into the dense base: PeftModel.from_pretrained(dense, PATH).merge_and_unload()"


class LazyWeight(torch.Tensor):  # type: ignore[misc]
    """A weight (out, in) that knows its shape, dtype and device, and is dequantized by the operation that uses it.

    PEFT asks most weights for their dtype and device only; on a base of several GB, dequantizing for that would cost
    more than training does. An autograd graph that holds one holds no dense copy: its backward reads it again.
    """

    _view: LinearView

    @staticmethod
    def __new__(cls, view: LinearView, dtype: torch.dtype, device: torch.device) -> LazyWeight:
        shape = (view.out_features, view.in_features)
        weight: LazyWeight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        weight._view = view
        return weight

    # Results of operations are plain tensors, not LazyWeights.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if isinstance(value, cls) and argument.alias_info is not None and argument.alias_info.is_write:
                raise refusal(value._view)
        args, kwargs = pytree.tree_map_only(cls, lambda weight: weight.read(), (args, kwargs or {}))
        return func(*args, **kwargs)

    def read(self) -> Tensor:
        """The weight as a new dense tensor of this dtype."""
        return self._view.read_weight().to(self.dtype)

    @property
    def data(self) -> Tensor:
        # The same object: `weight.data.add_(…)` on a dense copy would be lost without a word.
        return self

    @data.setter
    def data(self, value: Tensor) -> None:
        raise refusal(self._view)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"LazyWeight(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"


class LinearView(nn.Linear):  # type: ignore[misc]
    """Stands for one quantized layer, and owns it."""

    def __init__(self, layer: nn.Module, ops: LinearOps, name: str, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate a weight
        self.out_features, self.in_features = ops.shape
        self.name = name
        self.ops = ops
        self.dtype = dtype
        self.layer = layer
        # Shared under the name that a dense copy has, so that biases are saved as PEFT saves them.
        self.register_parameter("bias", getattr(layer, "bias", None))
        self.register_state_dict_post_hook(_drop_second_bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)  # (…, in) -> (…, out)
        return y

    @property
    def weight(self) -> LazyWeight:
        tensors = itertools.chain(self.layer.parameters(), self.layer.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        return LazyWeight(self, self.dtype, device)

    def read_weight(self) -> Tensor:
        """The dequantized weight (out, in), new, without grad. Raises UnsupportedOp where it cannot be read."""
        if Op.READ_WEIGHT not in self.ops.ops:
            raise UnsupportedOp(
                f"the adapter needs the weight of `{self.name}`, and its quantizer offers no {Op.READ_WEIGHT}",
                hint="--adapter lora needs only forward and grad-input",
            )
        return self.ops.read_weight().detach()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise refusal(self)
        super().__setattr__(name, value)


def _drop_second_bias(view: LinearView, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """The bias is in the view's state under its own name; as the layer's it would be saved twice."""
    state.pop(f"{prefix}layer.bias", None)


def refusal(view: LinearView) -> UnsupportedOp:
    """The error for a change of a quantized weight."""
    return UnsupportedOp(
        f"`{view.name}` is quantized, and changing its weight in place would round it again and damage the model",
        hint=MERGE_HINT,
    )


def install_views(
    model: nn.Module, ops_for: Callable[[nn.Module], LinearOps | None], dtype: torch.dtype
) -> list[LinearView]:
    """Put a view in the place of every quantized layer of `model`, and return the views."""
    found = [(name, layer, ops) for name, layer in model.named_modules() if name and (ops := ops_for(layer))]
    views = []
    for name, layer, ops in found:
        view = LinearView(layer, ops, name, dtype)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, view)
        views.append(view)
    return views


def remove_unused_views(model: nn.Module) -> None:
    """Put back the layer of every view that no adapter took, so that the rest of the model is as it was."""
    for parent in list(model.modules()):
        if isinstance(parent, BaseTunerLayer):
            continue
        for child, module in list(parent.named_children()):
            if isinstance(module, LinearView):
                setattr(parent, child, module.layer)


@contextmanager
def views_in(
    model: nn.Module, ops_for: Callable[[nn.Module], LinearOps | None], dtype: torch.dtype
) -> Iterator[list[LinearView]]:
    """Views while the context is open; those that an adapter took stay, and refuse to be merged in place."""
    views = install_views(model, ops_for, dtype)
    try:
        yield views
    finally:
        remove_unused_views(model)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), LinearView):
            module.merge = _RefuseMerge(module.get_base_layer().name)


class _RefuseMerge:
    """Takes the place of a tuner layer's `merge`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise UnsupportedOp(
            f"`{self.name}` is quantized, and merging the adapter into it in place would damage the model",
            hint=MERGE_HINT,
        )
