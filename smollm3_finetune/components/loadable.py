"""The model files in a directory. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from smollm3_finetune.components.kinds import LOADER
from smollm3_finetune.components.registry import Registry


def loadable_file(directory: Path, registry: Registry) -> Path | None:
    """The first file in a directory that a loader claims; None if there is none, or the directory cannot be read."""
    try:
        files = sorted(file for file in directory.iterdir() if file.is_file())
    except OSError:
        return None
    return next((file for file in files if registry.claiming(LOADER, str(file))), None)
