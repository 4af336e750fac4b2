"""Which layers are quantized, and whether hqq can do it: decided on the architecture, before weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from smollm3_finetune.api import IncompatibleError, ModelSource, group_size_error, layers_to_quantize
from smollm3_hqq.options import HQQOptions

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def chosen(model: PreTrainedModel, source: ModelSource, options: HQQOptions) -> dict[str, nn.Linear]:
    """Name to layer, of those that are to be quantized: linear, not the output head, not skipped.

    Raises ConfigError for a name in `skip_modules` that no layer has and for a group size that does not divide one,
    IncompatibleError where no layer is left or hqq cannot pack one.
    """
    found = layers_to_quantize(model, "hqq", source, options.skip_modules)
    _check_groups(found, options)
    return found


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
            raise group_size_error("hqq", size, f"the {features} {along} of {name}", everywhere)
        rows = layer.out_features
        if size is not None:
            rows = size if options.axis == 0 else layer.in_features * layer.out_features // size
        together = {4: 2, 2: 4}.get(options.bits, 1)
        if rows % together:
            raise IncompatibleError(
                f"hqq packs {together} rows of {options.bits} bits into one, and {name} has {rows}",
                hint=f"--quant-opt skip_modules={name.rsplit('.', 1)[-1]}, or --quant-opt bits=8",
            )
