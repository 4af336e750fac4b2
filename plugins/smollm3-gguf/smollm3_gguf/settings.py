"""The transformers config that a GGUF header states, and the settings for which transformers has no place.

transformers' own reader drops the keys that it does not know, for example those of RoPE scaling. Here every key
`ARCH.*` is used, has no effect, or is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from smollm3_finetune.api import ModelError
from smollm3_gguf.header import Header
from smollm3_gguf.rope import Read, rope_parameters
from smollm3_gguf.values import Keys, exact

EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
NAMES: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_epsilon": EPSILON,
    "attention.layer_norm_rms_epsilon": EPSILON,
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "logit_scale": ("logit_scale",),
    "use_parallel_residual": ("use_parallel_residual",),
    "ssm.conv_kernel": ("conv_kernel",),
    "ssm.state_size": ("state_size",),
    "ssm.time_step_rank": ("time_step_rank",),
    "shortconv.l_cache": ("conv_L_cache",),
}
"""Keys whose value is an attribute of the config: the first of these names that the config class has."""

REQUIRED = ("embedding_length", "block_count")

ANY = object()
NO_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "context_length": (ANY,),
    "vocab_size": (ANY,),  # the shape of the embedding states it
    "tensor_data_layout": (ANY,),
    "pooling_type": (ANY,),
    "rope.scaling.finetuned": (ANY,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "feed_forward_length": (0,),
    "attention.head_count": (0,),
    "attention.head_count_kv": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "attention.layer_norm_rms_epsilon": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (1,),
    "embedding_scale": (1,),
    "ssm.group_count": (0,),
    "ssm.dt_b_c_rms": (False,),
}
"""Keys without a place in the config, and the values at which they change nothing."""

HEAD = ("attention.key_length", "attention.value_length", "rope.dimension_count")
"""Keys that change nothing if they are the width of a head."""

SOFTMAX, SIGMOID = 1, 2
GATING = {"minimax_m2": SIGMOID}
"""Value of `expert_gating_func` that transformers' model computes; softmax if it is not listed."""
SCALED_BY_WIDTH = {"gemma2": 46, "gemma3_text": 62}
"""Number of layers of the models (27B) that scale attention by width / heads instead of by the head's width.

Source: llama.cpp, src/models/gemma2.cpp and gemma3.cpp, `f_attention_scale`.
"""
SWIN_EVERY = {"gemma2": 2, "gemma3_text": 6}
"""Every n-th layer attends to the whole text, the others to the sliding window."""


@dataclass(kw_only=True)
class Settings:
    """What a header states about the computation."""

    config: dict[str, Any] = field(default_factory=dict)
    """Values of `config.json`."""
    problems: list[str] = field(default_factory=list)
    """Keys and values that transformers' model cannot use."""


def read_settings(header: Header, kind: str, read: Read | None = None) -> Settings:
    """The config values for transformers' model type `kind`, and what it cannot use.

    `read` returns the values of a tensor. Without it the config lacks `rope_parameters` if they depend on a tensor.
    Raises KeyError for a key that every file must have, and ValueError or TypeError for values that do not fit.
    """
    from transformers import CONFIG_MAPPING
    from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING

    default = CONFIG_MAPPING[kind]()
    keys = Keys(header)
    for key in REQUIRED:
        if key not in keys.left:
            raise KeyError(f"{keys.prefix}{key}")
    found = Settings(config=dict(GGUF_CONFIG_DEFAULTS_MAPPING.get(kind, {})))
    known = set(default.to_dict()) | set(type(default).attribute_map)
    _heads(keys, known, found)
    _window(keys, kind, known, found)
    _experts(keys, kind, found)
    _named(keys, known, found)
    if "query_pre_attn_scalar" in known:
        _attention_scale(keys, kind, found)
    _flags(header, known, found)
    rope = rope_parameters(keys, header, default, found.config, found.problems, read)
    if rope is not None:
        found.config["rope_parameters"] = rope
    for key, value in keys.left.items():
        if not _without_effect(key, value, found.config):
            found.problems.append(keys.shown(key, value))
    return found


def stated_by_transformers(header: Header) -> Settings:
    """The config of an architecture whose header transformers translates itself, and the keys that it did not read."""
    from transformers.integrations.gguf.gguf_config_mapping import get_gguf_config

    seen = _Seen(header.metadata)
    config = get_gguf_config(seen, tuple(header.tensors))
    keys = Keys(header)
    left = {k: v for k, v in keys.left.items() if f"{keys.prefix}{k}" not in seen.read}
    problems = [keys.shown(k, v) for k, v in left.items() if not _without_effect(k, v, config)]
    if "rope_freqs.weight" in header.tensors:
        problems.append("rope_freqs.weight")
    return Settings(config={k: v for k, v in config.items() if v is not None}, problems=problems)


def check_settings(ref: str, kind: str, settings: Settings) -> None:
    """Raise ModelError if the file states something that transformers' model cannot use."""
    if settings.problems:
        shown = ", ".join(settings.problems[:4]) + (", …" if len(settings.problems) > 4 else "")
        raise ModelError(
            f"{ref} states {shown}, which transformers' model {kind} cannot use",
            hint="use the model's original repository instead of the GGUF file",
        )


class _Seen(dict[str, Any]):
    """A dictionary that records which keys were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def _named(keys: Keys, known: set[str], found: Settings) -> None:
    for key, names in NAMES.items():
        name = next((n for n in names if n in known), None)
        value = keys.left.get(key)
        if name is None or value is None or (value == 0 and 0 in NO_EFFECT.get(key, ())):
            continue
        value = keys.same_for_all(key, found.problems)
        if value is not None:
            found.config[name] = value
        keys.take(key)
    if "expand" in known and (inner := keys.take("ssm.inner_size")) is not None:
        found.config |= {"expand": inner // found.config["hidden_size"], "intermediate_size": inner}


def _heads(keys: Keys, known: set[str], found: Settings) -> None:
    """Width of a head: `head_dim`, which most models read even if their config does not declare it."""
    count, width = keys.same_for_all("attention.head_count", found.problems), keys.left.get("embedding_length")
    if not count or not width:
        return
    computed = width // count
    head = keys.take("attention.key_length", computed)
    value = keys.take("attention.value_length", head)
    if value != head:
        found.problems.append(keys.shown("attention.value_length", value))
    if "head_dim" in known or head != computed:
        found.config["head_dim"] = head
    if "num_kv_heads" in known and keys.left.get("attention.head_count_kv", count) != 1:
        # Falcon: transformers does not undo llama.cpp's order of the rows of its fused projection
        found.problems.append(keys.shown("attention.head_count_kv", keys.left.get("attention.head_count_kv", count)))


def _window(keys: Keys, kind: str, known: set[str], found: Settings) -> None:
    """The sliding window, and the layers that have it."""
    window = keys.left.get("attention.sliding_window") or None
    if "sliding_window" not in known:
        return
    if "use_sliding_window" in known:  # off unless asked for; the file does not state which layers have it
        found.config["use_sliding_window"] = False
        return
    layers = keys.left.get("block_count", 0)
    every = keys.take("attention.sliding_window_pattern", SWIN_EVERY.get(kind, 1 if window is None else 0))
    if kind in SWIN_EVERY:
        if window is None and kind == "gemma2":
            window = 4096  # llama.cpp's default
        wide = _wide_layers(every if window else 1, layers)
        if wide is None:
            found.problems.append(keys.shown("attention.sliding_window_pattern", every))
            return
        found.config["layer_types"] = ["full_attention" if w else "sliding_attention" for w in wide]
    elif every not in (0, 1):
        found.problems.append(keys.shown("attention.sliding_window_pattern", every))
    if window is not None or kind not in SWIN_EVERY:
        found.config["sliding_window"] = window
    keys.take("attention.sliding_window")


def _wide_layers(pattern: Any, layers: int) -> list[bool] | None:
    """Whether each layer attends to the whole text; `pattern` is a period, or whether each layer has a window."""
    if isinstance(pattern, int) and pattern > 0:
        return [(i + 1) % pattern == 0 for i in range(layers)]
    if isinstance(pattern, list) and len(pattern) == layers:
        return [not windowed for windowed in pattern]
    return None


def _experts(keys: Keys, kind: str, found: Settings) -> None:
    gating = keys.take("expert_gating_func")
    if gating not in (None, 0, GATING.get(kind, SOFTMAX)):
        found.problems.append(keys.shown("expert_gating_func", gating))


def _attention_scale(keys: Keys, kind: str, found: Settings) -> None:
    config, scale = found.config, keys.take("attention.scale")
    if scale:
        config["query_pre_attn_scalar"] = exact(scale**-2)
    elif SCALED_BY_WIDTH.get(kind) == config["num_hidden_layers"]:
        config["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"]
    else:
        config["query_pre_attn_scalar"] = config["head_dim"]


FLAGS: Mapping[str, tuple[str, ...]] = {
    "attention_bias": (".attn_q.bias", ".attn_k.bias", ".attn_v.bias", ".attn_output.bias"),
    "mlp_bias": (".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"),
    "use_qkv_bias": (".attn_q.bias", ".attn_k.bias", ".attn_v.bias"),
    "qkv_bias": (".attn_q.bias", ".attn_k.bias", ".attn_v.bias"),
    "bias": (".attn_qkv.bias", ".attn_output.bias", ".ffn_up.bias", ".ffn_down.bias"),
    "use_bias": (".attn_q.bias", ".attn_output.bias", ".ffn_up.bias", ".ssm_in.bias", ".ssm_out.bias"),
    "use_conv_bias": (".ssm_conv1d.bias",),
}
"""Attributes that give a model biases, and the tensors that a file with these biases contains."""


def _flags(header: Header, known: set[str], found: Settings) -> None:
    for name, ends in FLAGS.items():
        if name in known:
            found.config[name] = _any(header.tensors, ends)
    if "use_parallel_residual" in known:  # without a second norm, attention and feed-forward share one
        found.config["use_parallel_residual"] = not _any(header.tensors, (".ffn_norm.weight",))


def _any(names: Iterable[str], ends: tuple[str, ...]) -> bool:
    return any(name.endswith(ends) for name in names)


def _without_effect(key: str, value: Any, config: Mapping[str, Any]) -> bool:
    allowed = NO_EFFECT.get(key, ())
    if ANY in allowed or (not isinstance(value, list) and value in allowed):
        return True
    if isinstance(value, list) and value and all(v in allowed for v in value):
        return True
    heads = config.get("num_attention_heads")
    if key == "attention.head_count_kv":  # models without grouped heads
        return bool(value == heads)
    if key == "feed_forward_length":  # models whose width is fixed
        return bool(value == 4 * config.get("hidden_size", 0))
    head = config.get("head_dim") or (heads and config.get("hidden_size", 0) // heads)
    if key in HEAD:
        return bool(value == head)
    if key == "attention.scale" and head:
        return bool(abs(value * head**0.5 - 1) < 1e-6)
    return False
