"""Writes smollm3_finetune/installing/index.json: what each plugin of plugins/ and examples/plugins/ offers.

    python scripts/plugin_index.py

Hooks are called, so the folders need not be installed; their hook modules import only the standard library and the
plugin API. `tests/installing/test_index.py` compares the file with what this script writes.
"""

from __future__ import annotations

import json

from gallery.plugins import BUNDLED, EXAMPLES, Plugin, plugins

from smollm3_finetune.components.discovery import CORE_DISTRIBUTION, GROUP
from smollm3_finetune.components.registry import INDEX_FILE
from smollm3_finetune.installing.index import FORMAT, IndexedComponent, IndexedPlugin

FOLDERS = {BUNDLED: True, EXAMPLES: False}
"""The folders of plugins, and whether their plugins are released with smollm3-finetune."""


def indexed(plugin: Plugin, published: bool) -> IndexedPlugin:
    """The plugin in a folder, by its pyproject.toml and its hooks."""
    found = sorted((c for c in plugin.registry.components if c.distribution != CORE_DISTRIBUTION),
                   key=lambda c: (c.kind.name, c.spec.name))  # fmt: skip
    return IndexedPlugin(
        name=plugin.name,
        summary=str(plugin.project["description"]),
        plugins=tuple(sorted(plugin.project["entry-points"][GROUP])),
        components=tuple(
            IndexedComponent(kind=c.kind.name, name=c.spec.name, aliases=c.spec.aliases, summary=c.spec.summary)
            for c in found
        ),
        folder=plugin.place,
        published=published,
        homepage=plugin.project.get("urls", {}).get("Homepage", ""),
    )


def text() -> str:
    """The content of index.json."""
    found = [indexed(p, published) for above, published in FOLDERS.items() for p in plugins(above)]
    entries = [p.as_dict() for p in sorted(found, key=lambda p: p.name)]
    return json.dumps({"format": FORMAT, "plugins": entries}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    INDEX_FILE.write_text(text(), encoding="utf-8")
    print(f"{INDEX_FILE}: {len(json.loads(INDEX_FILE.read_text(encoding='utf-8'))['plugins'])} plugins")
