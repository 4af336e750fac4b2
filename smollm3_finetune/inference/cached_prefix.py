"""The key-value cache of a chat: each turn continues from the tokens that the model has read, if that is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class CachedPrefix:
    """Keys and values of a sequence of tokens that one model has read, with one state of its adapter."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._cache: Any = None

    def take(self, prompt: Sequence[int]) -> tuple[Any, int]:
        """A cache that holds exactly the first tokens of `prompt`, and their number; (None, 0) if there is none.

        The rest of the prompt is at least one token. The cache is removed from here, because its next use extends it:
        call `keep` afterwards.
        """
        cache, ids = self._cache, self._ids
        self.drop()
        if cache is None:
            return None, 0
        equal = next((i for i, pair in enumerate(zip(ids, prompt, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(ids), len(prompt)) if equal is None else equal
        same = min(same, len(prompt) - 1)
        if same <= 0 or not _continues(cache, cropped=same < len(ids)):
            return None, 0
        if same < len(ids):
            cache.crop(same - len(ids))
        return cache, same

    def keep(self, cache: Any, ids: Sequence[int]) -> None:
        """Keep the cache of the tokens `ids`; not if it has another length, as with virtual tokens of an adapter."""
        self.drop()
        if cache is not None and hasattr(cache, "get_seq_length") and cache.get_seq_length() == len(ids):
            self._cache, self._ids = cache, list(ids)

    def drop(self) -> None:
        """Forget the cache."""
        self._ids, self._cache = [], None


def _continues(cache: Any, *, cropped: bool) -> bool:
    """Whether the next tokens can be read after a cache, or after the beginning of it, with the same result.

    Layers with a sliding window have forgotten the tokens before it, so they cannot be cropped. Layers of other kinds,
    such as linear attention, keep a state that their models continue by one token at a time.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    usable = {DynamicLayer} if cropped else {DynamicLayer, DynamicSlidingWindowLayer}
    layers: list[Any] = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer) in usable for layer in layers)
