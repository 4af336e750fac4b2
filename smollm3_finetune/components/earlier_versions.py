"""Components that were written for an earlier version of the plugin API, with the methods of the current one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smollm3_finetune.api import Adapted, AdapterSpec, Base, BuildContext, ComponentSpec


def current(made: Any, spec: ComponentSpec) -> Any:
    """`made`, which the factory of `spec` returned, as an object of the current version."""
    if isinstance(spec, AdapterSpec) and spec.api < 2:
        return type(type(made).__name__, (_AdapterOfVersion1,), {})(made)  # named as in the plugin, for messages
    return made


def accepts(method: Callable[..., Any], count: int) -> bool:
    """Whether a method can be called with `count` positional arguments; True if its signature is unknown."""
    try:
        inspect.signature(method).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # not written in Python
        return True
    return True


class _AdapterOfVersion1:
    """Calls `restore` without `total_steps`."""

    def __init__(self, adapter: Any) -> None:
        self._adapter: Any = adapter

    def __getattr__(self, name: str) -> Any:
        if name == "_adapter":  # asked by copy and pickle before it is set
            raise AttributeError(name)
        return getattr(self._adapter, name)

    def restore(self, base: Base, path: Path, ctx: BuildContext, total_steps: int | None) -> Adapted:
        adapted: Adapted = self._adapter.restore(base, path, ctx)
        return adapted
