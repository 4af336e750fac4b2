"""Checks of an adapter config that somebody else made, before PEFT follows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from smollm3_finetune.api import ModelError, check_patterns

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
NAMING = ("module", "pattern", "parameter")
"""Parts of the names of the fields whose texts PEFT uses as regular expressions for module names."""
USUAL_RANK = 1024


def check_saved_config(about: Mapping[str, Any], path: Path, model: nn.Module) -> None:
    """Raises ModelError if the config of the adapter in `path` would change `model` or use it up.

    It is refused if it replicates layers, if its regular expressions do not end, or if it states a rank that none of
    its tensors has.
    """
    file = path / CONFIG_FILE
    if about.get("layer_replication"):
        raise ModelError(
            f"{file}: layer_replication, which repeats layers of the base, is not supported",
            hint="repeat the layers in the base first, and train an adapter on that",
        )
    texts = [t for key, value in about.items() if any(word in key for word in NAMING) for t in _texts(value)]
    names = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    try:
        check_patterns(texts, names)
    except ValueError as e:
        raise ModelError(f"{file}: {e}", hint="name the modules in target_modules") from e
    _check_ranks(about, path)


def _texts(value: Any) -> Iterator[Any]:
    """The texts of a field: itself, the items of a list, the keys of a mapping."""
    if isinstance(value, list | dict):
        for item in value:
            yield from _texts(item)
    else:
        yield value


def _check_ranks(about: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError for a rank that no tensor of the adapter has: PEFT allocates layers before it reads tensors."""
    pattern = about.get("rank_pattern")
    stated = [about.get("r"), about.get("init_r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    largest = max((rank for rank in stated if isinstance(rank, int)), default=0)
    if largest <= USUAL_RANK:
        return
    try:
        with safe_open(str(path / WEIGHTS_FILE), framework="pt") as tensors:
            sizes = [size for name in tensors.keys() for size in tensors.get_slice(name).get_shape()]  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{path / WEIGHTS_FILE} is damaged: {e}", hint="copy or download it again") from e
    if largest > max(sizes, default=0):
        raise ModelError(f"{path / CONFIG_FILE} states the rank {largest}, which none of the adapter's tensors has")
