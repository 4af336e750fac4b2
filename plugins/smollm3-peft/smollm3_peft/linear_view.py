"""Views that present quantized linear layers to PEFT as `nn.Linear` layers; weights are read through `LinearOps`.

PEFT has one class for each pair of method and quantization library. A `LinearView` replaces a quantized layer, owns it,
and calls it in its forward. PEFT's plain `nn.Linear` class can therefore serve every method on every quantizer, and
this module does not depend on any quantization library. Views are read-only: every in-place change of the weight raises
an error.
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

MERGE_HINT = (
    "save the adapter and merge it into the dense base: PeftModel.from_pretrained(dense, PATH).merge_and_unload()"
)


class LazyWeight(torch.Tensor):  # type: ignore[misc]
    """A weight (out, in) with a shape, dtype and device that is dequantized only by the operation that uses it.

    PEFT needs only the dtype and device of most weights; on a base of several GB, dequantizing for that would cost
    more than training. An autograd graph that keeps a LazyWeight keeps no dense copy: the backward pass dequantizes
    it again.
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
        # The same object, so that `weight.data.add_(…)` raises; on a dense copy the change would be lost silently.
        return self

    @data.setter
    def data(self, value: Tensor) -> None:
        raise refusal(self._view)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"LazyWeight(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"


class LinearView(nn.Linear):  # type: ignore[misc]
    """Replaces one quantized layer, and owns it."""

    def __init__(self, layer: nn.Module, ops: LinearOps, name: str, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate a weight
        self.out_features, self.in_features = ops.shape
        self.name = name
        self.ops = ops
        self.dtype = dtype
        self.quantized_layer = layer
        # Registered under its name in a dense model, so that biases are saved in PEFT's format.
        self.register_parameter("bias", getattr(layer, "bias", None))
        self.register_state_dict_post_hook(_drop_second_bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.quantized_layer(x)  # (…, in) -> (…, out)
        return y

    @property
    def weight(self) -> LazyWeight:
        tensors = itertools.chain(self.quantized_layer.parameters(), self.quantized_layer.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        return LazyWeight(self, self.dtype, device)

    def read_weight(self) -> Tensor:
        """The dequantized weight (out, in), a new tensor without grad. Raises UnsupportedOp if it cannot be read."""
        if Op.READ_WEIGHT not in self.ops.ops:
            raise UnsupportedOp(
                f"the adapter reads the weight of `{self.name}`, but its quantizer does not provide {Op.READ_WEIGHT}",
                hint="use --adapter lora, which needs only forward and grad-input",
            )
        return self.ops.read_weight().detach()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise refusal(self)
        super().__setattr__(name, value)


def _drop_second_bias(view: LinearView, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Remove the bias of the quantized layer from the state: it is already saved as the bias of the view."""
    state.pop(f"{prefix}quantized_layer.bias", None)


def refusal(view: LinearView) -> UnsupportedOp:
    """The error for an in-place change of a quantized weight."""
    return UnsupportedOp(
        f"`{view.name}` is quantized, and changing its weight in place would round it again and damage the model",
        hint=MERGE_HINT,
    )


def install_views(
    model: nn.Module, ops_for: Callable[[nn.Module], LinearOps | None], dtype: torch.dtype
) -> list[LinearView]:
    """Replace every quantized layer of `model` with a view, and return the views."""
    found = [(name, layer, ops) for name, layer in model.named_modules() if name and (ops := ops_for(layer))]
    views = []
    for name, layer, ops in found:
        view = LinearView(layer, ops, name, dtype)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, view)
        views.append(view)
    return views


def remove_unused_views(model: nn.Module) -> None:
    """Replace every view without an adapter with its layer, so that the rest of the model is unchanged."""
    for parent in list(model.modules()):
        if isinstance(parent, BaseTunerLayer):
            continue
        for child, module in list(parent.named_children()):
            if isinstance(module, LinearView):
                setattr(parent, child, module.quantized_layer)


@contextmanager
def views_in(
    model: nn.Module, ops_for: Callable[[nn.Module], LinearOps | None], dtype: torch.dtype
) -> Iterator[list[LinearView]]:
    """Install views inside the context; views with an adapter stay, and cannot be merged in place."""
    views = install_views(model, ops_for, dtype)
    try:
        yield views
    finally:
        remove_unused_views(model)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), LinearView):
            module.merge = RefuseMerge(module.get_base_layer().name)


class RefuseMerge:
    """Replaces the `merge` of a tuner layer on a quantized layer or stack."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise UnsupportedOp(
            f"`{self.name}` is quantized, and merging the adapter into it in place would damage the model",
            hint=MERGE_HINT,
        )
