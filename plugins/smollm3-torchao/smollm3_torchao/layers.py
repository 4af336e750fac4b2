"""Which layers are quantised: decided on the architecture, before weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smollm3_finetune.api import ConfigError, IncompatibleError, ModelSource
from smollm3_torchao import no_such_group
from smollm3_torchao.options import TorchaoInt8Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(config: Mapping[str, Any]) -> PreTrainedModel | None:
    """The architecture on the meta device, without weights; None where it is not one of transformers' own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {k: v for k, v in config.items() if k != "model_type"}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(str(config.get("model_type")), **values)
            )
    except Exception:  # custom code, or a config of another version: the loaded model is looked at instead
        return None
    return model


def chosen(model: PreTrainedModel, source: ModelSource, options: TorchaoInt8Options) -> dict[str, nn.Linear]:
    """Name to layer, of those that are to be quantised: linear, not the output head, not skipped.

    Raises ConfigError for a name in `skip_modules` that no layer has and for a group size that does not divide the
    inputs of one, IncompatibleError where no layer is left.
    """
    head = model.get_output_embeddings()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    for key in options.skip_modules:
        if not any(_within(key, name) for name in linears):
            raise ConfigError(
                f"torchao-int8: skip_modules names {key!r}, which is no linear layer of {source.ref!r} and holds none",
                hint=f"its linear layers are {', '.join(sorted({n.rsplit('.', 1)[-1] for n in linears})) or 'none'}",
            )
    found = {n: m for n, m in linears.items() if not any(_within(key, n) for key in options.skip_modules)}
    if not found:
        raise IncompatibleError(
            f"torchao-int8 finds no linear layer to quantise in {source.ref!r}", hint="--quant none"
        )
    size = options.group_size
    for name, layer in found.items():
        if size is not None and layer.in_features % size:
            everywhere = [each.in_features for each in found.values()]
            raise no_such_group(size, f"the {layer.in_features} in_features of {name}", everywhere)
    return found


def _within(key: str, name: str) -> bool:
    """Whether `key` is a run of whole parts of a dotted name: `k_proj`, `layers.0`, the name itself."""
    return f".{key}." in f".{name}."
