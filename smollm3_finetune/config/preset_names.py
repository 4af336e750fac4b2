"""The names of the presets. Imports only `os`: help and completion list them."""

from __future__ import annotations

import os

PRESETS = os.path.join(os.path.dirname(__file__), "presets")
ENDING = ".yaml"


def preset_names() -> list[str]:
    """The names of the presets, sorted."""
    return sorted(f.removesuffix(ENDING) for f in os.listdir(PRESETS) if f.endswith(ENDING))


def preset_file(name: str) -> str:
    return os.path.join(PRESETS, f"{name}{ENDING}")


def preset_summaries() -> dict[str, str]:
    """The first line of each preset, by name: a comment that says what it is for."""
    found = {}
    for name in preset_names():
        with open(preset_file(name), encoding="utf-8") as stream:
            found[name] = stream.readline().lstrip("# ").strip()
    return found
