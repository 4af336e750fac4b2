"""The metadata of an architecture, key by key. Imports only the standard library."""

from __future__ import annotations

import struct
from typing import Any

from smollm3_gguf.header import Header


def exact(value: Any) -> Any:
    """A float32 number as the shortest decimal that rounds to it: 1e-05 instead of 9.999999747378752e-06."""
    if not isinstance(value, float):
        return value
    short = float(f"{value:.7g}")
    return short if struct.pack("<f", short) == struct.pack("<f", value) else value


class Keys:
    """The keys `ARCH.*` of a header that were not taken yet."""

    def __init__(self, header: Header) -> None:
        self.prefix = f"{header.architecture}."
        self.left: dict[str, Any] = {
            key.removeprefix(self.prefix): exact(value)
            for key, value in header.metadata.items()
            if key.startswith(self.prefix)
        }

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, which counts as used from now on."""
        return self.left.pop(key, default)

    def same_for_all(self, key: str, problems: list[str]) -> Any:
        """The value of a key that may be a list with one value per layer; different values are a problem."""
        value = self.left.get(key)
        if not isinstance(value, list):
            return value
        if len(set(value)) == 1:
            return value[0]
        if (problem := self.shown(key, value)) not in problems:
            problems.append(problem)
        return None

    def shown(self, key: str, value: Any) -> str:
        """`ARCH.KEY = VALUE` for an error message."""
        text = f"{value}" if isinstance(value, float) else f"{value!r}"
        return f"{self.prefix}{key} = {text if len(text) <= 40 else f'{text[:39]}…'}"
