"""RoPE of a GGUF file: base, rotated width, and scaling of each kind.

Source: llama.cpp, src/llama-model.cpp (`rope_scaling_type`, `rope_freq_scale_train`) and ggml's `rope_yarn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smollm3_gguf.header import Header
from smollm3_gguf.values import Keys, exact

Read = Callable[[str], list[float]]
"""Returns the values of a tensor of the file, by its name."""

FACTORS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
FACTOR_TENSORS = (FACTORS, SHORT, LONG)
"""Tensors that divide the frequencies. They have no place among the weights of transformers' models."""

LLAMA3_CONTEXT, LOW, HIGH = 8192, 1.0, 4.0
"""Original context and frequency limits of Llama 3.1 and later, from which the factors of their files are computed."""


def rope_parameters(
    keys: Keys,
    header: Header,
    default: Any,
    config: dict[str, Any],
    problems: list[str],
    read: Read | None,
) -> dict[str, Any] | None:
    """`rope_parameters` of a config; None if the model has no RoPE, or if they need a tensor and `read` is None.

    Takes the keys `rope.*`, reads `head_dim`, `hidden_size` and `num_attention_heads` of `config`, and adds to
    `problems` what transformers cannot use.
    """
    own = getattr(default, "rope_parameters", None)
    factors = [name for name in FACTOR_TENSORS if name in header.tensors]
    if not own:
        problems += factors
        return None
    nested = "full_attention" in own
    flat: Mapping[str, Any] = own["full_attention"] if nested else own
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.take("rope.freq_base", 10000.0)}
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotated = keys.take("rope.dimension_count", head)
    if "partial_rotary_factor" in flat or default.model_type == "minimax_m2":
        rope["partial_rotary_factor"] = rotated / head
    elif rotated != head:
        problems.append(keys.shown("rope.dimension_count", rotated))
    original = keys.take("rope.scaling.original_context_length", config.get("max_position_embeddings"))
    attention = keys.take("rope.scaling.attn_factor", 1.0)
    scaling = _scaling(keys, original, attention, problems)
    if factors:
        if scaling:
            problems.append(f"{factors[0]} with {scaling['rope_type']} RoPE scaling")
        if nested:
            problems.append(factors[0])
        if read is None:
            return None
        scaling = _factors(header, rope["rope_theta"], rotated, original, attention, problems, read)
        if scaling.get("rope_type") == "longrope":
            scaling["factor"] = max(config.get("max_position_embeddings", original) / original, 1.0)
    if attention != 1 and "attention_factor" not in scaling:
        problems.append(f"{keys.prefix}rope.scaling.attn_factor = {attention}")
    if "original_max_position_embeddings" in scaling and hasattr(default, "original_max_position_embeddings"):
        config["original_max_position_embeddings"] = original  # Phi-3 gives this attribute priority
    rope |= scaling
    if not nested:
        return rope
    window = {"rope_type": "default", "rope_theta": keys.take("rope.freq_base_swa", 10000.0)}
    if (narrow := keys.take("rope.dimension_count_swa", rotated)) != rotated:
        problems.append(keys.shown("rope.dimension_count_swa", narrow))
    return {"sliding_attention": window, "full_attention": rope}


def _scaling(keys: Keys, original: int | None, attention: float, problems: list[str]) -> dict[str, Any]:
    """The scaling that the metadata states; empty if there is none."""
    kind = keys.take("rope.scaling.type")
    factor = keys.take("rope.scaling.factor", 0.0)
    factor = factor or keys.take("rope.scale_linear", 0.0) or 1.0
    betas = {
        name: keys.take(f"rope.scaling.yarn_{name}", usual) for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))
    }
    if kind == "yarn":
        for key, neutral in (("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)):
            if (value := keys.take(f"rope.scaling.{key}", neutral)) != neutral:
                problems.append(keys.shown(f"rope.scaling.{key}", value))
        rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas}
        if attention != 1:  # llama.cpp multiplies both, transformers' own factor replaces the other
            rope["attention_factor"] = attention * (0.1 * math.log(factor) + 1)
        return rope if factor != 1 else {}
    if kind not in (None, "none", "linear", "longrope"):
        problems.append(keys.shown("rope.scaling.type", kind))
    elif kind == "longrope" and factor != 1:  # its factors are tensors
        problems.append(keys.shown("rope.scaling.factor", factor))
    elif factor != 1 and kind != "none":  # linear is llama.cpp's default
        return {"rope_type": "linear", "factor": factor}
    return {}


def _factors(
    header: Header, theta: float, rotated: int, original: int, attention: float, problems: list[str], read: Read
) -> dict[str, Any]:
    """The scaling that tensors with one factor for each frequency state; empty if every factor is 1."""
    names = (FACTORS, FACTORS) if FACTORS in header.tensors else (SHORT, LONG)
    if missing := [name for name in names if name not in header.tensors]:
        problems.append(f"RoPE factors without {missing[0]}")
        return {}
    short, long = ([exact(v) for v in read(name)] for name in names)
    if wrong := next((f for f in (short, long) if len(f) != rotated // 2), None):
        problems.append(f"{len(wrong)} RoPE factors for {rotated // 2} frequencies")
        return {}
    if attention == 1 and all(f == 1 for f in (*short, *long)):
        return {}
    if short == long and attention == 1:
        for context in dict.fromkeys((LLAMA3_CONTEXT, original)):
            llama3 = {
                "rope_type": "llama3",
                "factor": max(short),
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": context,
            }
            if _close(short, llama3_factors(theta, rotated, llama3)):
                return llama3
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }


def llama3_factors(theta: float, rotated: int, scaling: Mapping[str, Any]) -> list[float]:
    """The factors that llama.cpp's converter stores for `rope_type: llama3`; one for each pair of dimensions."""
    context, low, high = (
        scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    factors = []
    for i in range(0, rotated, 2):
        length = 2 * math.pi * theta ** (i / rotated)
        if length < context / high:
            factors.append(1.0)
        elif length > context / low:
            factors.append(float(scaling["factor"]))
        else:
            smooth = (context / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return factors


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two lists are equal up to the rounding of float32 frequencies."""
    return len(a) == len(b) and all(abs(x - y) <= 1e-5 * abs(y) for x, y in zip(a, b, strict=True))
