"""PEFT's methods as adapters of smollm3-finetune. This module imports neither torch nor peft."""

from __future__ import annotations

from collections.abc import Iterable

from smollm3_finetune.api import AdapterSpec, hookimpl

__version__ = "0.1.0"


@hookimpl
def smollm3_adapters() -> Iterable[AdapterSpec]:
    from smollm3_peft.methods import METHODS

    return METHODS
