"""The options of a quantizer for one model: a quantized checkpoint keeps those that it was written with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.components.selection import SelectedComponent


def options_for(quantizer: SelectedComponent, config: Mapping[str, Any]) -> Any:
    """The options of a chosen quantizer for the model with this `config.json`, as its `bytes_for` takes them."""
    read, stored = quantizer.spec.read_options, config.get("quantization_config")
    if read is None or not isinstance(stored, Mapping):
        return quantizer.options
    with attributed_to(quantizer.component, "read_options()"):
        found = dict(quantizer.component.waited(lambda: read(stored), "read_options"))
        names = {field.name for field in dataclasses.fields(quantizer.options)}
        return dataclasses.replace(quantizer.options, **{k: v for k, v in found.items() if k in names})
