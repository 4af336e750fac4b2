"""Writes smollm3_finetune/installing/index.json: what each plugin of plugins/ and examples/plugins/ offers.

    python scripts/plugin_index.py

Hooks are called, so the folders need not be installed; their hook modules import only the standard library and the
plugin API. `tests/installing/test_index.py` compares the file with what this script writes.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from smollm3_finetune.components.discovery import CORE_DISTRIBUTION, GROUP, PluginSelection, discover
from smollm3_finetune.components.registry import INDEX_FILE
from smollm3_finetune.installing.index import FORMAT, IndexedComponent, IndexedPlugin

ROOT = Path(__file__).parents[1]
FOLDERS = {"plugins": True, "examples/plugins": False}
"""The folders of plugins, and whether their plugins are released with smollm3-finetune."""


def plugins() -> Iterator[IndexedPlugin]:
    for above, published in FOLDERS.items():
        for file in sorted((ROOT / above).glob("*/pyproject.toml")):
            yield indexed(file.parent, published)


def indexed(folder: Path, published: bool) -> IndexedPlugin:
    """The plugin in a folder, by its pyproject.toml and its hooks."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"][GROUP]
    sys.path.insert(0, str(folder))
    try:
        registry = discover(PluginSelection(files=tuple(dict.fromkeys(points.values())), entry_points=False))
    finally:
        sys.path.remove(str(folder))
    found = sorted((c for c in registry.components if c.distribution != CORE_DISTRIBUTION),
                   key=lambda c: (c.kind.name, c.spec.name))  # fmt: skip
    return IndexedPlugin(
        name=project["name"],
        summary=project["description"],
        plugins=tuple(sorted(points)),
        components=tuple(
            IndexedComponent(kind=c.kind.name, name=c.spec.name, aliases=c.spec.aliases, summary=c.spec.summary)
            for c in found
        ),
        folder=folder.relative_to(ROOT).as_posix(),
        published=published,
        homepage=project.get("urls", {}).get("Homepage", ""),
    )


def text() -> str:
    """The content of index.json."""
    entries = sorted((p.as_dict() for p in plugins()), key=lambda p: p["name"])
    return json.dumps({"format": FORMAT, "plugins": entries}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    INDEX_FILE.write_text(text(), encoding="utf-8")
    print(f"{INDEX_FILE}: {len(json.loads(INDEX_FILE.read_text(encoding='utf-8'))['plugins'])} plugins")
