"""The context length of a model by its `config.json`, and whether YaRN can extend it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.errors import IncompatibleError

LENGTHS = ("max_position_embeddings", "n_positions")
ROPE_KEYS = ("rope_parameters", "rope_theta", "rope_scaling", "rotary_emb_base")


def context_of(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model takes, in tokens; None if its config does not say."""
    found = next((config[key] for key in LENGTHS if isinstance(config.get(key), int)), None)
    return found if found is None or found > 0 else None


def rope_type(config: Mapping[str, Any]) -> str:
    """`default` if rope is not scaled, else the name of the scaling; `nested` if layers have different kinds."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, Mapping) for value in rope.values()):
        return "nested"
    return str(rope.get("rope_type", rope.get("type", "default")))


def yarn_problem(config: Mapping[str, Any], ref: str) -> IncompatibleError | None:
    """Why YaRN cannot be used with a model, or None. Uses transformers only if `config.json` does not mention rope."""
    if not isinstance(config.get("max_position_embeddings"), int) or not _has_rope(config):
        return IncompatibleError(
            f"{ref!r} has no rope (rotary position embeddings) that YaRN could extend",
            hint="omit context, and keep --max-length within the model's own context",
        )
    kind = rope_type(config)
    if kind == "nested":
        return IncompatibleError(
            f"the layers of {ref!r} have different kinds of rope, which YaRN does not support",
            hint="omit context",
        )
    if kind != "default":
        return IncompatibleError(
            f"the rope of {ref!r} is already scaled ({kind}), so YaRN cannot be used",
            hint=f"omit context: the model takes {context_of(config)} tokens without it",
        )
    return None


def _has_rope(config: Mapping[str, Any]) -> bool:
    if any(config.get(key) for key in ROPE_KEYS):
        return True
    from transformers import AutoConfig

    try:
        known = AutoConfig.for_model(str(config.get("model_type")))
    except ValueError:  # an architecture that transformers does not know
        return False
    return bool(getattr(known, "rope_parameters", None))
