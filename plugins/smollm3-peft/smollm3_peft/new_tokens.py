"""New tokens beside LoRA: PEFT trains their rows of the embeddings, and of the output layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from smollm3_finetune.api import ConfigError, IncompatibleError
from smollm3_peft import targets, ties

FIELD = "trainable_token_indices"
"""PEFT's name for the rows to train, in `adapter_config.json`."""


def arguments(model: PreTrainedModel, ids: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """The argument of PEFT's config that trains the rows `ids`; `names` are the modules that the adapter changes.

    Raises ConfigError if these include the embeddings or the head, and IncompatibleError if the head has a bias, which
    PEFT's layer leaves out.
    """
    layers: dict[str, Any] = {}
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        name = next((name for name, module in model.named_modules() if module is layer), None)
        if name is not None:
            layers[name] = layer
    for name, layer in layers.items():
        if wanted := next((w for w in names if targets.matches(name, w)), None):
            raise ConfigError(
                f"the adapter changes {wanted!r} as a whole, whose rows data.add_tokens trains",
                hint=f"leave {wanted} out of target_modules and modules_to_save, or use --adapter full",
            )
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            raise IncompatibleError(
                f"PEFT cannot train single rows of {name!r}, because it has a bias", hint="use --adapter full"
            )
    if ties.shared(model) and ties.declared(model):
        return {FIELD: list(ids)}  # PEFT applies them to the head too
    return {FIELD: {name: list(ids) for name in layers}}
