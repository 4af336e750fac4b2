"""Records the memory of tensors while a model runs under fake tensors, which have shapes but no values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from torch import nn

aten = torch.ops.aten
READ = aten._local_scalar_dense.default
"""What reads the value of a tensor."""


@dataclass
class Segment:
    """A part of the trace."""

    name: str
    start: int
    """Bytes that were allocated when it began."""
    end: int = 0
    peak: int = 0
    """The most that was allocated in it."""
    events: list[tuple[int, int]] = field(default_factory=list)
    """The number of each storage that was allocated and its size, or of each that was freed and -1."""

    @property
    def kept(self) -> int:
        """How much more is allocated after it than before it."""
        return self.end - self.start

    @property
    def rise(self) -> int:
        """How much more than at its beginning was allocated at most."""
        return self.peak - self.start


@dataclass
class Trace(TorchDispatchMode):  # type: ignore[misc]
    """Counts the bytes of storages that operations create, until they are freed.

    A selection by a mask takes all: a fake tensor has no values.
    """

    round_up: Callable[[int], int] = lambda size: size
    """The bytes that the allocator of the device takes for a storage."""
    value: int = 0
    """What a read of a value gives: a fake tensor has none. Of a boolean, it is False."""
    live: int = 0
    segments: list[Segment] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._known = WeakIdKeyDictionary()
        self._frees: dict[int, Any] = {}
        self._next = 0
        self.begin("")

    __hash__ = object.__hash__

    def begin(self, name: str) -> None:
        """End the current segment, and begin another."""
        if self.segments:
            self.segments[-1].end = self.live
        self.segments.append(Segment(name, self.live, peak=self.live))

    def finish(self) -> list[Segment]:
        """The segments, in the order in which they were recorded."""
        self.segments[-1].end = self.live
        return self.segments

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is READ:
            return False if args[0].dtype is torch.bool else self.value
        for leaf in tree_leaves((args, kwargs)):  # what existed before is not counted
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self._known:
                self._known[leaf.untyped_storage()] = -1
        if func is aten.index.Tensor and any(i is not None and i.dtype is torch.bool for i in args[1]):
            result = self._where(*args)
        elif func in (aten._index_put_impl_.default, aten.index_put_.default):
            result = args[0]
        else:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _where(self, values: torch.Tensor, masks: Any) -> torch.Tensor:
        """The elements where a boolean mask is true: all of them, because the mask has no values."""
        mask = masks[0]
        self._count(torch.empty((mask.ndim, mask.numel()), dtype=torch.int64, device=mask.device).untyped_storage())
        return values.new_empty((mask.numel(), *values.shape[mask.ndim :]))

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        size, number = self.round_up(storage.nbytes()), self._next
        self._next += 1
        self._known[storage] = number

        def freed(_: object) -> None:
            self._frees.pop(number, None)
            self.live -= size
            self.segments[-1].events.append((number, -1))

        self._frees[number] = weakref.ref(storage, freed)
        self.live += size
        segment = self.segments[-1]
        segment.events.append((number, size))
        segment.peak = max(segment.peak, self.live)


def without_values() -> FakeTensorMode:
    """A context in which new tensors have no values and no memory. Tensors of one may not be used in another."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def as_fake(model: nn.Module, device: str) -> None:
    """Replace the parameters and buffers of a model by fake tensors on `device`; shared ones stay shared.

    Call it inside a context of `without_values`.
    """
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    made[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                tensors[name] = made[id(tensor)]
