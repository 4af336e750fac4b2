"""smollm3-finetune: fine-tune SmolLM3 and other causal language models; every method is a plugin.

Importing this package is fast: the public names below are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smollm3_finetune.version import __version__

if TYPE_CHECKING:
    from smollm3_finetune.api import hookimpl
    from smollm3_finetune.launching.finetune import finetune
    from smollm3_finetune.model import LoadedModel, load_model

__all__ = ["LoadedModel", "__version__", "finetune", "hookimpl", "load_model"]

_MODULES = {
    "load_model": "smollm3_finetune.model",
    "LoadedModel": "smollm3_finetune.model",
    "finetune": "smollm3_finetune.launching.finetune",
    "hookimpl": "smollm3_finetune.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
