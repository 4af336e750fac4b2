"""A saved PEFT LoRA adapter, as llama.cpp's adapter files can hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smollm3_finetune.api import IncompatibleError, ModelError, open_tensors, read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {".lora_A.weight": 0, ".lora_B.weight": 1}
NEUTRAL = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "peft_type", "peft_version", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
"""Fields of PEFT's LoraConfig that choose layers, ranks and start values, or that the factors take in."""
KEEP_THE_BASE = ("gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that do not change the base; the other names do."""
HINT = "export the merged model: --to gguf"


@dataclass(frozen=True)
class LoraAdapter:
    """The factors of each layer; llama.cpp adds alpha / rank · B @ A to its weight."""

    alpha: float
    factors: Mapping[str, tuple[Tensor, Tensor]]
    """Name of a layer of the base to A (rank, in) and B (out, rank), float32."""


def read_adapter(path: Path) -> LoraAdapter:
    """Read a saved adapter.

    Raises IncompatibleError if it is not plain LoRA on linear layers, and ModelError if files are missing or damaged.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise ModelError(f"{path} contains no PEFT adapter: {name} is missing", hint=HINT)
    about = read_json(path / CONFIG_FILE)
    _check_config(about)
    pairs: dict[str, list[Tensor | None]] = {}
    with open_tensors(path / WEIGHTS_FILE) as tensors:
        for key in tensors.keys():  # noqa: SIM118
            layer, part = _place(key)
            pairs.setdefault(layer, [None, None])[part] = tensors.get_tensor(key).float()
    complete = {layer: (a, b) for layer, (a, b) in pairs.items() if a is not None and b is not None}
    if incomplete := sorted(pairs.keys() - complete.keys()):
        raise ModelError(f"the adapter in {path} has only one of the two factors of {incomplete[0]}")
    return _scaled(about, complete)


def _place(key: str) -> tuple[str, int]:
    """The layer of a saved tensor, and 0 for its A, 1 for its B."""
    for ending, part in PARTS.items():
        if key.startswith(PREFIX) and key.endswith(ending):
            return key.removeprefix(PREFIX).removesuffix(ending), part
    raise IncompatibleError(f"llama.cpp's adapter files have no place for {key.removeprefix(PREFIX)}", hint=HINT)


def _check_config(about: Mapping[str, Any]) -> None:
    """Refuse what changes the computation beyond A and B."""
    kind = str(about.get("peft_type"))
    if kind != "LORA":
        raise IncompatibleError(f"llama.cpp's adapter files hold LoRA, and this adapter is {kind}", hint=HINT)
    if about.get("use_dora"):
        raise IncompatibleError("llama.cpp's adapter files hold LoRA, and this adapter is DoRA", hint=HINT)
    start = about.get("init_lora_weights", True)
    if isinstance(start, str) and start not in KEEP_THE_BASE:
        raise IncompatibleError(f"the start values {start} changed the base of this adapter", hint=HINT)
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    for field, value in about.items():
        if field not in NEUTRAL and value and value != usual.get(field):
            raise IncompatibleError(f"llama.cpp's adapter files cannot express {field} = {value!r}", hint=HINT)


def _scaled(about: Mapping[str, Any], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> LoraAdapter:
    """Express the scale of every layer by one alpha; where they differ, B takes the rest."""
    from peft.utils.other import get_pattern_key

    alphas: Mapping[str, float] = about.get("alpha_pattern") or {}
    own = {}
    for layer, (a, _) in pairs.items():
        alpha = alphas.get(get_pattern_key(list(alphas), layer), about["lora_alpha"])
        own[layer] = alpha * math.sqrt(a.shape[0]) if about.get("use_rslora") else float(alpha)
    alpha = next(iter(own.values())) if len(set(own.values())) == 1 else float(about["lora_alpha"])
    factors = {}
    for layer, (a, b) in pairs.items():
        rest = own[layer] / alpha
        factors[layer] = (a, b if rest == 1 else (b.double() * rest).float())
    return LoraAdapter(alpha=alpha, factors=factors)
