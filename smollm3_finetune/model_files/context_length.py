"""How many tokens a model takes, as its `config.json` says, and whether its rope can be stretched by YaRN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.errors import IncompatibleError

LENGTHS = ("max_position_embeddings", "n_positions")
ROPE_KEYS = ("rope_parameters", "rope_theta", "rope_scaling", "rotary_emb_base")


def context_of(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model takes, in tokens; None where its config does not say."""
    found = next((config[key] for key in LENGTHS if isinstance(config.get(key), int)), None)
    return found if found is None or found > 0 else None


def rope_type(config: Mapping[str, Any]) -> str:
    """`default` where rope is not scaled yet, else the name of the scaling; `nested` where layers differ in it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, Mapping) for value in rope.values()):
        return "nested"
    return str(rope.get("rope_type", rope.get("type", "default")))


def yarn_problem(config: Mapping[str, Any], ref: str) -> IncompatibleError | None:
    """What keeps YaRN from a model. Asks transformers only where `config.json` does not mention rope."""
    if not isinstance(config.get("max_position_embeddings"), int) or not _has_rope(config):
        return IncompatibleError(
            f"{ref!r} has no rope (rotary position embeddings) that YaRN could stretch to more tokens",
            hint="leave context out, and let --max-length be what the model takes",
        )
    kind = rope_type(config)
    if kind == "nested":
        return IncompatibleError(
            f"the layers of {ref!r} have ropes of several kinds, and YaRN would not be right for all",
            hint="leave context out",
        )
    if kind != "default":
        return IncompatibleError(
            f"the rope of {ref!r} is scaled already ({kind}), and cannot be scaled by YaRN as well",
            hint=f"leave context out: it takes {context_of(config)} tokens as it is",
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
