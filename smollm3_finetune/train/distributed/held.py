"""The bytes of a model's weights that this process holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

DEPTH = 4
"""How many attributes deep tensors are looked for in objects that modules hold, such as bitsandbytes' `quant_state`."""


def held_bytes(model: nn.Module) -> int:
    """The memory of the model's weights in this process: of sharded parameters, only its own part.

    Counts each storage once: parameters, buffers, and tensors in other attributes of modules, such
    as a function that holds one. Weights
    that are gathered at the moment do not count. Gradients are not counted.
    """
    storages: dict[tuple[str, int], int] = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        if tensor.device.type != "meta" and storage.nbytes():
            storages[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """The tensors of all modules; of sharded ones, the part of this process."""
    seen: dict[int, Any] = {}
    for module in model.modules():
        yield from _in(list(module._parameters.values()), seen, DEPTH)
        yield from _in(list(module._buffers.values()), seen, DEPTH)
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        yield from _in(own, seen, DEPTH)


def _in(value: Any, seen: dict[int, Any], depth: int) -> Iterator[Tensor]:
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
            yield from _in(local, seen, depth)
        elif is_traceable_wrapper_subclass(value):
            for name in value.__tensor_flatten__()[0]:
                yield from _in(getattr(value, name), seen, depth)
        else:
            yield value
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
