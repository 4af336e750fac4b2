"""Models that can be exported: their architecture in a file, and the configs that llama.cpp computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api import IncompatibleError

NOPE_STEP = 4
"""llama.cpp's smollm3 has no RoPE in every fourth layer; a file cannot state another pattern."""
LLAMA3_LIMITS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Settings of llama3 RoPE scaling that a file can be read back with; it holds the factors only."""


@dataclass(frozen=True)
class Family:
    """Models whose files have one architecture."""

    architecture: str
    scalings: tuple[str, ...]
    """Kinds of RoPE scaling that llama.cpp computes for it."""
    biases: bool
    """Whether llama.cpp reads all of its biases."""


LLAMA = Family("llama", ("default", "linear", "yarn", "llama3"), biases=True)
FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "smollm3": Family("smollm3", ("default", "linear", "yarn"), biases=False),
}
"""transformers' model type to the family."""


def every_fourth(layers: int) -> list[int]:
    """`no_rope_layers` as llama.cpp computes it: 1 where there is RoPE."""
    return [int((i + 1) % NOPE_STEP != 0) for i in range(layers)]


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` with every value that transformers' config class adds, without its quantization."""
    from transformers import AutoConfig

    given = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config")}
    full: dict[str, Any] = AutoConfig.for_model(config["model_type"], **given).to_dict()
    if not full.get("head_dim"):
        full["head_dim"] = full["hidden_size"] // full["num_attention_heads"]
    if full.get("num_key_value_heads") is None:
        full["num_key_value_heads"] = full["num_attention_heads"]
    return full


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config. Raises IncompatibleError if models of this type are not exported."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise IncompatibleError(
            f"the exporter gguf does not write models of type {kind}",
            hint=f"it writes {', '.join(sorted(FAMILIES))}; for others use llama.cpp's convert_hf_to_gguf.py",
        )
    return FAMILIES[kind]


def check_config(config: Mapping[str, Any]) -> None:
    """Raise IncompatibleError if llama.cpp would compute something else than transformers with this `config.json`."""
    family = family_of(config)
    full = settled(config)
    problems = [*_shape(full), *_rope(full, family), *_windows(full)]
    if not family.biases:
        problems += [f"{key} = true" for key in ("attention_bias", "mlp_bias") if full.get(key)]
    if problems:
        raise IncompatibleError(
            f"llama.cpp's {family.architecture} cannot compute a model with {problems[0]}",
            hint="smollm3 export RUN --to safetensors",
        )


def _shape(config: Mapping[str, Any]) -> Sequence[str]:
    found = []
    if config.get("hidden_act") != "silu":
        found.append(f"hidden_act = {config.get('hidden_act')}")
    if config["head_dim"] % 2:
        found.append(f"head_dim = {config['head_dim']}, an odd number")
    if "no_rope_layers" in config:
        layers = config["num_hidden_layers"]
        if list(config["no_rope_layers"])[:layers] != every_fourth(layers):
            pattern = "".join(str(i) for i in config["no_rope_layers"][:layers])
            found.append(f"no_rope_layers = {pattern[:40]} (1: RoPE); it omits RoPE in layers 3, 7, 11, …")
    return found


def _rope(config: Mapping[str, Any], family: Family) -> Sequence[str]:
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    found = []
    if kind not in family.scalings:
        found.append(f"RoPE scaling of type {kind}")
    if rope.get("partial_rotary_factor", 1.0) not in (1, None):
        found.append(f"partial_rotary_factor = {rope['partial_rotary_factor']}")
    if kind == "yarn":
        found += [f"yarn's {k} = {rope[k]}" for k in ("mscale", "mscale_all_dim") if rope.get(k) is not None]
        if rope.get("truncate") is False:
            found.append("yarn's truncate = false")
    if kind == "llama3":
        found += [f"llama3's {k} = {rope[k]}" for k, usual in LLAMA3_LIMITS.items() if rope[k] != usual]
        context = rope["original_max_position_embeddings"]
        if context not in (8192, config["max_position_embeddings"]):
            found.append(f"llama3's original_max_position_embeddings = {context}")
    return found


def _windows(config: Mapping[str, Any]) -> Sequence[str]:
    """Attention windows, if a text can be longer than one."""
    window, context = config.get("sliding_window"), config["max_position_embeddings"]
    kinds = config.get("layer_types") or []
    windowed = "sliding_attention" in kinds or (config["model_type"] == "mistral" and window is not None)
    return [f"sliding_window = {window}"] if windowed and (window or 0) < context else []
