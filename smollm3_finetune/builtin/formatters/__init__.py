"""The bundled formatters, one module for each row format, and the modules that they share.

Each is imported on first use, so that reading descriptors (which need only `claims`) stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smollm3_finetune.builtin.formatters.alpaca import AlpacaFormatter
    from smollm3_finetune.builtin.formatters.messages import MessagesFormatter
    from smollm3_finetune.builtin.formatters.preference import PreferenceFormatter
    from smollm3_finetune.builtin.formatters.prompt_completion import PromptCompletionFormatter
    from smollm3_finetune.builtin.formatters.sharegpt import SharegptFormatter
    from smollm3_finetune.builtin.formatters.text import TextFormatter

__all__ = [
    "AlpacaFormatter",
    "MessagesFormatter",
    "PreferenceFormatter",
    "PromptCompletionFormatter",
    "SharegptFormatter",
    "TextFormatter",
]

_MODULES = {
    "AlpacaFormatter": "alpaca",
    "MessagesFormatter": "messages",
    "PreferenceFormatter": "preference",
    "PromptCompletionFormatter": "prompt_completion",
    "SharegptFormatter": "sharegpt",
    "TextFormatter": "text",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
