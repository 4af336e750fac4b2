"""The bytes of a model's weights that a process holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_SHOWN = 4
"""With more processes, only the largest number is shown."""
DEPTH = 4
"""How many attributes deep tensors are looked for in objects that modules hold, such as bitsandbytes' `quant_state`."""


@dataclass(frozen=True)
class Held:
    """The memory of weights in one process, in bytes. Gradients are not counted."""

    shared: int
    """Its part of the weights that the processes share."""
    own: int
    """Weights that every process holds."""

    @property
    def bytes(self) -> int:
        return self.shared + self.own


def held_weights(model: nn.Module) -> Held:
    """The memory of the model's weights in this process.

    Counts each storage once: parameters, buffers, and tensors in other attributes of modules, such as a
    function that holds one. Weights that are gathered at the moment do not count.
    """
    storages: dict[tuple[str, int], tuple[int, bool]] = {}
    for tensor, shared in _tensors(model):
        storage = tensor.untyped_storage()
        if tensor.device.type != "meta" and storage.nbytes():
            storages[str(tensor.device), storage.data_ptr()] = storage.nbytes(), shared
    return Held(*(sum(n for n, shared in storages.values() if shared == kind) for kind in (True, False)))


def held_by_all(model: nn.Module) -> list[Held]:
    """The memory of the weights in each process, by rank; every process must call this."""
    import torch.distributed as dist

    own = held_weights(model)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def held_report(held: Sequence[Held]) -> dict[str, Any]:
    """For the report of a run."""
    return {
        "processes": [one.bytes for one in held],
        "not_shared": [one.own for one in held],
        "line": shown_held(held).partition("  ")[2],
    }


def shown_held(held: Sequence[Held]) -> str:
    """`weights  41.1 MB in process 0, 41.0 MB in process 1; of these, 0.1 MB are in each process`"""
    if len(held) <= MOST_SHOWN:
        parts = ", ".join(f"{shown_bytes(one.bytes)} in process {rank}" for rank, one in enumerate(held))
    else:
        parts = f"at most {shown_bytes(max(one.bytes for one in held))} in each of {len(held)} processes"
    own = max(one.own for one in held)
    return f"weights  {parts}" + (f", including {shown_bytes(own)} that every process holds" if own else "")


def shown_bytes(count: int) -> str:
    """`1.93 GB`, `41 MB`: powers of ten, three digits."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


Found = Iterator[tuple["Tensor", bool]]
"""Tensors, and whether each is a part of a tensor that the processes share."""


def _tensors(model: nn.Module) -> Found:
    """The tensors of all modules; of sharded ones, the part of this process."""
    seen: dict[int, Any] = {}
    for module in model.modules():
        yield from _in(list(module._parameters.values()), seen, DEPTH)
        yield from _in(list(module._buffers.values()), seen, DEPTH)
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        yield from _in(own, seen, DEPTH)


def _in(value: Any, seen: dict[int, Any], depth: int, shared: bool = False) -> Found:
    """The tensors in an attribute: itself, elements of containers, and attributes of plain objects."""
    import torch
    from torch import nn
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if value is None or isinstance(value, str | bytes | int | float | type | nn.Module) or depth < 0:
        return
    if id(value) in seen:
        return
    if isinstance(value, torch.Tensor):
        seen[id(value)] = value  # which keeps it alive: an id of another object would be equal otherwise
        local = getattr(value, "_local_tensor", None)  # of a DTensor
        if local is not None:
            yield from _in(local, seen, depth, True)
        elif is_traceable_wrapper_subclass(value):
            for name in value.__tensor_flatten__()[0]:
                yield from _in(getattr(value, name), seen, depth, shared)
        else:
            yield value, shared
        yield from _in(getattr(value, "quant_state", None), seen, depth - 1)
    elif isinstance(value, Mapping):
        seen[id(value)] = value
        for one in list(value.values()):
            yield from _in(one, seen, depth - 1)
    elif isinstance(value, list | tuple | set | frozenset):
        seen[id(value)] = value
        for one in list(value):
            yield from _in(one, seen, depth - 1)
    elif isinstance(value, FunctionType):
        seen[id(value)] = value
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                yield from _in(cell.cell_contents, seen, depth - 1)
    elif type(value).__module__.partition(".")[0] not in ("builtins", "torch", "weakref", "functools"):
        seen[id(value)] = value
        yield from _in(getattr(value, "__dict__", None), seen, depth - 1)
