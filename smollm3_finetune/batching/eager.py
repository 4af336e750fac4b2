"""Functions that torch.compile skips: their shapes change with each batch, so they would be recompiled each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """`function`, which runs uncompiled even if a compiled model calls it."""
    uncompiled: F = torch.compiler.disable(function)
    return uncompiled
