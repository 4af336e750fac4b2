"""Sampling defaults of a generation config, which anybody may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

FLOATS = ("temperature", "top_p", "repetition_penalty")
WHOLE = ("top_k",)
LARGEST = {**dict.fromkeys(FLOATS, 3e38), **dict.fromkeys(WHOLE, 2**31 - 1)}
"""Above these, a file has no type for a value."""


def sampling_of(generation: Mapping[str, Any]) -> tuple[dict[str, float | int], Sequence[str]]:
    """The values to state, and those that are omitted because they are no finite numbers, as `KEY = VALUE`.

    Nothing is stated if the model does not sample by default (`do_sample` is false).
    """
    if generation.get("do_sample") is False:
        return {}, []
    stated: dict[str, float | int] = {}
    omitted = []
    for key in (*FLOATS, *WHOLE):
        if (value := generation.get(key)) is None:
            continue
        if _usable(key, value):
            stated[key] = int(value) if key in WHOLE else value
        else:
            omitted.append(f"{key} = {value!r:.40}")
    return stated, omitted


def _usable(key: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST[key]:
        return False
    return key in FLOATS or math.floor(value) == value
