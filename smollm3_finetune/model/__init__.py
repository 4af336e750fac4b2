"""Models of every variant: `load_model` composes loader, quantizer and adapter into a `LoadedModel`.

Importing this package imports nothing heavy: the two names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smollm3_finetune.model.load import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from smollm3_finetune.model import load

    return getattr(load, name)
