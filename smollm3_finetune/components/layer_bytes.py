"""The memory of the layers of a quantizer, as it states it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from smollm3_finetune.api import Env, LayerBytes, ModelSource
from smollm3_finetune.components.contract import described
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.components.selection import SelectedComponent


def effective_options(quantizer: SelectedComponent, source: ModelSource) -> Any:
    """The options with which the layers of this model are quantized: a quantized checkpoint keeps its own.

    Raises PluginError if the quantizer raises. Reads no weights.
    """
    spec, component = quantizer.spec, quantizer.component
    if spec.options_for is None:
        return quantizer.options
    with attributed_to(component, "options_for()"):
        return component.waited(lambda: spec.options_for(quantizer.options, source), "options_for")


def layer_bytes(
    quantizer: SelectedComponent, source: ModelSource, env: Env, dtype: str
) -> Callable[[tuple[int, int]], LayerBytes] | None:
    """A function from the shape (out, in) of a layer to its memory; None if the quantizer does not state it.

    `dtype` is that of the run, which `bytes_for` gets as `env.dtype`. Raises PluginError if the quantizer raises or
    returns something else. Reads no weights.
    """
    spec, component = refined(quantizer, env), quantizer.component
    if spec.bytes_for is None:
        return None
    options, run = effective_options(quantizer, source), replace(env, dtype=dtype)

    def stated(shape: tuple[int, int]) -> LayerBytes:
        with attributed_to(component, "bytes_for()"):
            found = component.waited(lambda: spec.bytes_for(options, shape, run), "bytes_for")
            if not isinstance(found, LayerBytes):
                raise TypeError(f"it returned {described(found)}, not LayerBytes")
        return found

    return stated
