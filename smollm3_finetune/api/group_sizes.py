"""Whether groups divide the features of the layers of a checkpoint, by the headers of its files. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from smollm3_finetune.api.models import ModelSource
from smollm3_finetune.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from smollm3_finetune.model_files.headers import LayerShape

GROUP_SIZES = (256, 128, 64, 32, 16, 8)
"""Group sizes to suggest if one does not fit, largest first."""
PROJECTIONS = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj"),
        *("c_attn", "c_proj", "c_fc", "fc_in", "fc_out", "Wqkv", "query_key_value", "w1", "w2", "w3"),
        *("dense", "dense_h_to_4h", "dense_4h_to_h"),
    }
)
"""Names of linear layers that every method quantizes. Others may be routers, or read by the model's code (Mamba)."""


def local_layers(source: ModelSource) -> dict[str, LayerShape] | None:
    """See `smollm3_finetune.api.layer_shapes`."""
    from smollm3_finetune.model_files.headers import read_headers, stored_layers, weight_files

    directory = getattr(source, "directory", None)
    if not isinstance(directory, Path) or not any(directory.glob("*.safetensors")):
        return None
    return stored_layers(read_headers(weight_files(directory)))


def check_group_size(
    name: str,
    source: ModelSource,
    group_size: int | None,
    *,
    skip_modules: Sequence[str] = (),
    along: Literal["in_features", "out_features"] = "in_features",
    option: str = "group_size",
) -> None:
    """See `smollm3_finetune.api.check_group_size`."""
    if not group_size:
        return
    features: dict[str, int] = {}
    with contextlib.suppress(ModelError):  # damaged files: loading reports them
        for layer, shape in (local_layers(source) or {}).items():
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
        raise group_size_error(name, group_size, wrong[0], list(features.values()), option)


def group_size_error(
    quantizer: str, group_size: int, what: str, features: Sequence[int], option: str = "group_size"
) -> ConfigError:
    """See `smollm3_finetune.api.group_size_error`."""
    fitting = [size for size in GROUP_SIZES if not any(n % size for n in features)]
    hint = f"--quant-opt {option}={fitting[0]}" if fitting else f"--quant-opt {option}=none takes whole rows"
    return ConfigError(f"{quantizer}: groups of {group_size} do not divide {what}", hint=hint)


def within(key: str, name: str) -> bool:
    """Whether `key` is one or more whole parts of the dotted name `name`."""
    return f".{key}." in f".{name}."
