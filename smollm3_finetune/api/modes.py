"""Evaluation mode that is undone exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards every module has the mode that it had, even if they differed."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # a parent before its children
            if module.training != mode:
                module.train(mode)  # some classes do more in it than set the flag
        for module, mode in modes:  # the calls above reached modules inside too
            module.training = mode
