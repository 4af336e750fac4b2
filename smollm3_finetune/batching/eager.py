"""What torch.compile leaves alone: work whose shapes are other ones in each batch, compiled again for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """`function`, called as it is also where a compiled model calls it."""
    apart: F = torch.compiler.disable(function)
    return apart
