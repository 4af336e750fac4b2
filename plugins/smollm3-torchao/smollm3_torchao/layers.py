"""Which layers are quantized: decided on the architecture, before weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smollm3_finetune.api import ModelSource, group_size_error, layers_to_quantize
from smollm3_torchao.options import TorchaoInt8Options

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def chosen(model: PreTrainedModel, source: ModelSource, options: TorchaoInt8Options) -> dict[str, nn.Linear]:
    """Name to layer, of those that are to be quantized: linear, not the output head, not skipped.

    Raises ConfigError for a name in `skip_modules` that no layer has and for a group size that does not divide the
    inputs of one, IncompatibleError where no layer is left.
    """
    found = layers_to_quantize(model, "torchao-int8", source, options.skip_modules)
    size = options.group_size
    for name, layer in found.items():
        if size is not None and layer.in_features % size:
            everywhere = [each.in_features for each in found.values()]
            raise group_size_error("torchao-int8", size, f"the {layer.in_features} in_features of {name}", everywhere)
    return found
