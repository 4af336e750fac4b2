"""The dropout that a model's config states. It is active in training, as in the transformers Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADS = ("classifier", "summary")
"""Starts of the names of settings for classification heads, which causal language models do not have."""


def stated_dropout(config: Mapping[str, Any]) -> dict[str, float]:
    """The dropout probabilities above 0 of a `config.json`, by name, with the defaults of its model type.

    Of a multimodal model, those of its language model. A type that transformers does not know has no defaults.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        return stated_dropout(text)
    values = {**_defaults(str(config.get("model_type"))), **config}
    return {name: float(value) for name, value in values.items() if is_dropout(name, value) and value > 0}


def is_dropout(name: str, value: Any) -> bool:
    """Whether a setting or an attribute is a dropout probability: `attention_dropout`, `resid_pdrop`, `layerdrop`, …"""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "drop" in name and number and 0 <= value <= 1 and not name.startswith(HEADS)


def _defaults(model_type: str) -> Mapping[str, Any]:
    from transformers import AutoConfig

    try:
        defaults: Mapping[str, Any] = AutoConfig.for_model(model_type).to_dict()
    except ValueError:  # a type that transformers does not know
        return {}
    return defaults


def described(dropout: Mapping[str, float]) -> str:
    """`dropout 0.1, layerdrop 0.05`."""
    return ", ".join(f"{name} {value:g}" for name, value in sorted(dropout.items()))
