"""Stacked weights of experts, held as one quantized linear layer for each expert. Imports torch.

`smollm3_finetune.api` has the functions for plugins: `load_layerwise` and `quantize_experts` create stacks,
`stack_ops_for` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from smollm3_finetune.api.capabilities import Op
from smollm3_finetune.api.frozen_tensor import hold_for
from smollm3_finetune.api.models import LinearOps

MATMUL = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
BMM = (torch.bmm, Tensor.bmm, *MATMUL)
TENSOR_ATTRIBUTES = frozenset(name for name in dir(Tensor) if not name.startswith("_")) - frozenset(dir(nn.Module))
"""What a stack answers with the dequantized values: `transpose`, `T`, `unbind` and so on."""


@dataclass(frozen=True)
class Update:
    """A low-rank change of every expert's weight: W + scaling · up @ down."""

    up: Tensor
    """(E, out, r)"""
    down: Tensor
    """(E, r, in)"""
    scaling: float

    def added(self, x: Tensor, expert: int) -> Tensor:
        """What the change adds to the output for x (…, in): (…, out)."""
        return F.linear(F.linear(x, self.down[expert]), self.up[expert]) * self.scaling

    def matrix(self, expert: int) -> Tensor:
        """The change of an expert's weight (out, in)."""
        return self.up[expert] @ self.down[expert] * self.scaling


class ExpertStack(nn.Module):  # type: ignore[misc]
    """Takes the place of a stacked weight: (E, out, in), or (E, in, out) if `transposed`.

    The module that owns the weight uses the stack as it used the tensor. `stack[e]` stands for the weight of expert e:
    `torch.nn.functional.linear` and `@` multiply by it through the quantized layer of the expert, and so does
    `torch.bmm` by the whole stack. Every other operation receives the dequantized values.

    The layers are not submodules, so that adapters for linear layers do not attach to them. Their frozen tensors are
    Parameters of the stack, so that FSDP finds them.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        ops_for: Callable[[nn.Module], LinearOps | None],
        *,
        transposed: bool,
        dtype: torch.dtype,
    ) -> None:
        """`layers` are the quantized layers (out, in) without bias, one for each expert, and `ops_for` is the base's.

        `dtype` is the dtype in which the model computes.
        """
        super().__init__()
        self._layers = tuple(layers)
        self._views = [_required(ops_for(layer)) for layer in layers]
        self.transposed = transposed
        self.dtype = dtype
        self.update: Update | None = None
        hold_for(self, self._layers)

    @property
    def ops(self) -> frozenset[Op]:
        """The operations that every expert provides."""
        return frozenset.intersection(*(view.ops for view in self._views))

    @property
    def forward_rtol(self) -> float:
        """The largest of the experts; see `LinearOps.forward_rtol`."""
        return max(view.forward_rtol for view in self._views)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(E, out, in), whatever the layout."""
        return (len(self._layers), *self._views[0].shape)

    def read_expert(self, expert: int) -> Tensor:
        """The weight (out, in) of one expert that the forward multiplies by, as a new tensor, float32 or wider."""
        return self._views[expert].read_weight()

    @contextmanager
    def updated(self, up: Tensor, down: Tensor, scaling: float) -> Iterator[None]:
        """Inside the context, the weight of expert e is W + scaling · up[e] @ down[e]; gradients reach both factors.

        `up` is (E, out, r), `down` is (E, r, in). Raises ValueError if the stack is already updated.
        """
        if self.update is not None:
            raise ValueError("the stack of experts already has an update")
        self.update = Update(up, down, scaling)
        try:
            yield
        finally:
            self.update = None

    # ------------------------------------------------------------------------------------ what the owner sees

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight that the stack replaces."""
        experts, out, inputs = self.sizes
        return torch.Size((experts, inputs, out) if self.transposed else (experts, out, inputs))

    @property
    def ndim(self) -> int:
        return 3

    @property
    def requires_grad(self) -> bool:
        return False

    @property
    def device(self) -> torch.device:
        tensors = (t for module in (self, *self._layers) for t in (*module.parameters(), *module.buffers()))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def __getattr__(self, name: str) -> Any:
        if name in TENSOR_ATTRIBUTES:
            return getattr(self.dense(), name)
        return super().__getattr__(name)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) or (isinstance(index, Tensor) and index.ndim == 0 and not index.is_floating_point()):
            return ExpertWeight(self, int(index))
        return self.dense()[index]

    def __iter__(self) -> Iterator[ExpertWeight]:
        return (ExpertWeight(self, e) for e in range(len(self)))

    def multiply(self, x: Tensor, expert: int) -> Tensor:
        """x (…, in) times the weight of an expert, with the update: (…, out)."""
        y: Tensor = self._layers[expert](x)
        return y if self.update is None else y + self.update.added(x, expert).to(y.dtype)

    def dense(self) -> Tensor:
        """The values that the stack stands for, in `dtype`, with the update."""
        return torch.stack([ExpertWeight(self, e).dense() for e in range(len(self))])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in BMM and not kwargs and len(args) == 2 and isinstance(args[1], cls):
            x, stack = args
            if isinstance(x, Tensor) and x.ndim == 3 and stack.transposed and len(x) == len(stack):
                return torch.stack([stack.multiply(x[e], e) for e in range(len(stack))])
        return _with_dense(func, args, kwargs)

    # ------------------------------------------------------------------------------------ moved with the model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExpertStack:
        super()._apply(fn, recurse)
        for layer in self._layers:
            layer._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> ExpertStack:
        super().train(mode)
        for layer in self._layers:
            layer.train(mode)
        return self

    def extra_repr(self) -> str:
        experts, out, inputs = self.sizes
        return f"{experts} × {type(self._layers[0]).__name__}, {inputs}, {out}"


class ExpertWeight:
    """The weight of one expert in an `ExpertStack`: (out, in), or (in, out) if the stack is transposed."""

    def __init__(self, stack: ExpertStack, expert: int) -> None:
        if not -len(stack) <= expert < len(stack):
            raise IndexError(f"expert {expert} of {len(stack)}")
        self.stack, self.expert = stack, expert % len(stack)

    def dense(self) -> Tensor:
        """The values, in the dtype of the stack."""
        stack = self.stack
        weight = stack.read_expert(self.expert)
        if stack.update is not None:
            weight = weight + stack.update.matrix(self.expert).to(weight.dtype)
        weight = weight.to(stack.dtype)
        return weight.T if stack.transposed else weight

    @property
    def shape(self) -> torch.Size:
        return self.stack.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.stack.dtype

    @property
    def device(self) -> torch.device:
        return self.stack.device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dense(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.dense()[index]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if len(args) > 1 and isinstance(args[0], Tensor) and isinstance(args[1], cls):
            weight, stack = args[1], args[1].stack
            if func is F.linear and not stack.transposed:
                bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
                y = stack.multiply(args[0], weight.expert)
                return y if bias is None else y + bias.to(y.dtype)
            if func in MATMUL and stack.transposed and len(args) == 2 and not kwargs:
                return stack.multiply(args[0], weight.expert)
        return _with_dense(func, args, kwargs)


def _with_dense(func: Any, args: Any, kwargs: Any) -> Any:
    """Call a function of torch with the values that stacks and their parts stand for."""
    stands_for = (ExpertStack, ExpertWeight)
    args, kwargs = pytree.tree_map_only(stands_for, lambda weight: weight.dense(), (args, kwargs or {}))
    return func(*args, **kwargs)


def _required(view: LinearOps | None) -> LinearOps:
    if view is None:
        raise TypeError("ops_for() returns None for the layer of an expert, as if it were not quantized")
    return view
