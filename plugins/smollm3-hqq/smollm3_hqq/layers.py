"""Which layers are quantised, and whether hqq can do it: decided on the architecture, before weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smollm3_finetune.api import ConfigError, IncompatibleError, ModelSource
from smollm3_hqq import no_such_group
from smollm3_hqq.options import HQQOptions

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


def chosen(model: PreTrainedModel, source: ModelSource, options: HQQOptions) -> dict[str, nn.Linear]:
    """Name to layer, of those that are to be quantised: linear, not the output head, not skipped.

    Raises ConfigError for a name in `skip_modules` that no layer has and for a group size that does not divide one,
    IncompatibleError where no layer is left or hqq cannot pack one.
    """
    head = model.get_output_embeddings()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    for key in options.skip_modules:
        if not any(_within(key, name) for name in linears):
            raise ConfigError(
                f"hqq: skip_modules names {key!r}, which is no linear layer of {source.ref!r} and holds none",
                hint=f"its linear layers are {', '.join(sorted({n.rsplit('.', 1)[-1] for n in linears})) or 'none'}",
            )
    found = {n: m for n, m in linears.items() if not any(_within(key, n) for key in options.skip_modules)}
    if not found:
        raise IncompatibleError(f"hqq finds no linear layer to quantise in {source.ref!r}", hint="--quant none")
    _check_groups(found, options)
    return found


def _within(key: str, name: str) -> bool:
    """Whether `key` is a run of whole parts of a dotted name: `k_proj`, `layers.0`, the name itself."""
    return f".{key}." in f".{name}."


def _check_groups(layers: Mapping[str, nn.Linear], options: HQQOptions) -> None:
    """Refuse what hqq takes and cannot use.

    A group that does not divide the features straddles two rows. And hqq packs 8 / bits rows of its matrix of groups
    into one, by cutting it into as many parts: where these are not equal, the first forward fails.
    """
    along = {1: "in_features", 0: "out_features"}[options.axis]
    size = options.group_size
    for name, layer in layers.items():
        features = getattr(layer, along)
        if size is not None and features % size:
            everywhere = [getattr(each, along) for each in layers.values()]
            raise no_such_group(size, f"the {features} {along} of {name}", everywhere)
        rows = layer.out_features
        if size is not None:
            rows = size if options.axis == 0 else layer.in_features * layer.out_features // size
        together = {4: 2, 2: 4}.get(options.bits, 1)
        if rows % together:
            raise IncompatibleError(
                f"hqq packs {together} rows of {options.bits} bits into one, and {name} has {rows}",
                hint=f"--quant-opt skip_modules={name.rsplit('.', 1)[-1]}, or --quant-opt bits=8",
            )
