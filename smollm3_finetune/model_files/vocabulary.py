"""The size of a model's vocabulary, as its `config.json` states it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def embeddings_of(config: Mapping[str, Any]) -> int | None:
    """The number of embeddings of a model with this `config.json`; None if it does not state it."""
    text = config.get("text_config")
    for about in (text if isinstance(text, Mapping) else {}, config):
        size = about.get("vocab_size")
        if isinstance(size, int) and size > 0:
            return size
    return None


def with_embeddings(config: Mapping[str, Any], size: int | None) -> dict[str, Any]:
    """The `config.json` with this number of embeddings; unchanged if it states none."""
    changed = dict(config)
    if size is None or embeddings_of(config) == size:
        return changed
    text = config.get("text_config")
    if isinstance(text, Mapping) and "vocab_size" in text:
        changed["text_config"] = {**text, "vocab_size": size}
    if "vocab_size" in config:
        changed["vocab_size"] = size
    return changed
