"""The distributions that a run uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.files.json import file_sha256


def versions(selected: Iterable[SelectedComponent], registry: Registry) -> Mapping[str, Any]:
    """The distributions of the selected components, to reproduce a run and to compare when it is resumed."""
    from smollm3_finetune.components.requirements import installed_version

    used = {c.component.distribution: c.component.version for c in selected}
    libraries = ("torch", "transformers", "accelerate", "safetensors")
    files = {p.origin: file_sha256(p.origin) for p in registry.plugins if p.origin.endswith(".py")}
    return {"plugins": used, "libraries": {n: installed_version(n) for n in libraries}, "plugin_files": files}
