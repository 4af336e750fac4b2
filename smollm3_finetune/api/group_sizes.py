"""Whether groups divide the features of the layers of a checkpoint, by the headers of its files. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

from smollm3_finetune.api.checkpoints import layer_shapes
from smollm3_finetune.api.models import ModelSource
from smollm3_finetune.api.quantizers import group_size_error, within
from smollm3_finetune.errors import ModelError

PROJECTIONS = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj"),
        *("c_attn", "c_proj", "c_fc", "fc_in", "fc_out", "Wqkv", "query_key_value", "w1", "w2", "w3"),
        *("dense", "dense_h_to_4h", "dense_4h_to_h"),
    }
)
"""Names of linear layers that every method quantizes. Others may be routers, or read by the model's code (Mamba)."""


def check_group_size(
    name: str,
    source: ModelSource,
    group_size: int | None,
    *,
    skip_modules: Sequence[str],
    along: Literal["in_features", "out_features"],
    option: str,
) -> None:
    """See `smollm3_finetune.api.check_group_size`."""
    if not group_size:
        return
    features: dict[str, int] = {}
    with contextlib.suppress(ModelError):  # damaged files: loading reports them
        for layer, shape in (layer_shapes(source) or {}).items():
            if layer.rpartition(".")[2] in PROJECTIONS and not any(within(key, layer) for key in skip_modules):
                features[layer] = getattr(shape, along)
    hidden = source.config.get("hidden_size")
    if features:
        wrong = [f"the {count} {along} of {layer}" for layer, count in features.items() if count % group_size]
    elif isinstance(hidden, int) and not skip_modules:
        features = {"": hidden}
        wrong = [f"the {hidden} features of {source.ref!r}"] if hidden % group_size else []
    else:
        return
    if wrong:
        raise group_size_error(name, group_size, wrong[0], list(features.values()), option=option)
