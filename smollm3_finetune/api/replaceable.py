"""The linear layers of a model that can be replaced by quantized ones. Imports torch."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_READS = re.compile(r"\bself((?:\.\w+)+)\.weight\b")
_WRITES = re.compile(r"\b\w+((?:\.\w+)+)\.weight(?:\.data)?\.(?:add|copy|div|mul|sub)_\(")
_ELSEWHERE = ("transformers.modeling_utils", "transformers.generation.", "builtins")
"""Modules with classes that read no weight of a particular model in a forward."""


def linear_layers(model: nn.Module) -> tuple[dict[str, nn.Linear], list[str]]:
    """The linear layers by name, without the output head, and the names of those that cannot be replaced.

    The latter are linear maps whose `weight` the model's code reads without calling the layer, as Mamba does: it would
    read the codes of a quantized layer, or fail.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    found = {n: m for n, m in model.named_modules() if m is not head and is_plain_linear(m)}
    read = [name for name in weights_that_are_read(model) if name in found]
    return {n: m for n, m in found.items() if n not in read}, read


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes x Wᵀ + b and nothing else. A subclass with a forward of its own is tried."""
    if not isinstance(module, nn.Linear):
        return False
    if type(module).forward is nn.Linear.forward:
        return True
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return False
    x = torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device, dtype=weight.dtype).view(1, 2, -1)
    try:
        with torch.no_grad():
            found, right = module(x), nn.functional.linear(x, weight, module.bias)
    except Exception:  # whatever the class does with an input that is not its own
        return False
    if not isinstance(found, Tensor) or found.shape != right.shape:
        return False
    return weight.is_meta or bool((found.float() - right.float()).norm() <= 0.02 * right.float().norm() + 1e-6)


def weights_that_are_read(model: nn.Module) -> list[str]:
    """The names of submodules whose `weight` is read, or changed in place, in the source code of a module around them.

    RWKV changes weights of its blocks in a loop: there, the end of a path below the module is known, not its beginning.
    """
    found = []
    modules = dict(model.named_modules())
    for name, module in modules.items():
        cls: Any = type(module)
        for path in _paths(cls, _READS):
            inner = f"{name}.{path}" if name else path
            if inner in modules:
                found.append(inner)
        if ends := tuple(f".{path}" for path in _paths(cls, _WRITES)):
            found += [n for n in modules if n.endswith(ends) and n.startswith(f"{name}." if name else "")]
    return list(dict.fromkeys(found))


@cache
def _paths(cls: type, pattern: re.Pattern[str]) -> frozenset[str]:
    """The paths whose `weight` occurs as `pattern` states in the source of a class or of its base classes."""
    paths: set[str] = set()
    for base in cls.__mro__:
        if base is nn.Module or f"{base.__module__}.".startswith(_ELSEWHERE):
            continue
        try:
            paths.update(match[1:] for match in pattern.findall(inspect.getsource(base)))
        except (OSError, TypeError):  # a class without a file
            continue
    return frozenset(paths)
