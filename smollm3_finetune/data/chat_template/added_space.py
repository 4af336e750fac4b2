"""The space that SentencePiece tokenizers, and some byte-level ones, put before each text.

A text that continues another one must not get it: its tokens would spell one space more than the text has.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextlib.contextmanager
def without_added_space(tokenizer: PreTrainedTokenizerBase, *, active: bool = True) -> Iterator[None]:
    """A fast tokenizer that adds no space before a text inside the context."""
    from tokenizers import normalizers, pre_tokenizers

    backend: Any = tokenizer.backend_tokenizer
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    if not active:
        yield
        return
    try:
        if (changed := _changed(normalizer)) is not None:
            backend.normalizer = _restored(normalizers.Sequence([]), changed)
        if (changed := _changed(pre_tokenizer)) is not None:
            backend.pre_tokenizer = _restored(pre_tokenizers.Sequence([]), changed)
        yield
    finally:
        backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer


def _restored(empty: Any, state: Any) -> Any:
    empty.__setstate__(json.dumps(state).encode())
    return empty


def _changed(component: Any) -> Any:
    """The state of a normalizer or pre-tokenizer without the added space; None if it adds none."""
    if component is None:
        return None
    state = json.loads(component.__getstate__())
    changed = _without(state)
    return None if changed == state else changed


def _without(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a component, and of those in it, without the added space."""
    nothing = {"type": "Sequence", "normalizers": []}
    kind = state.get("type")
    if kind == "Prepend":
        return nothing
    if kind == "Metaspace":
        return {**state, "prepend_scheme": "never"}
    if kind == "ByteLevel" and "add_prefix_space" in state:
        return {**state, "add_prefix_space": False}
    return {k: [_without(s) for s in v] if k in ("normalizers", "pretokenizers") else v for k, v in state.items()}
