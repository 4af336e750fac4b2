"""Writes smollm3_finetune/installing/index.json: what each plugin of plugins/ and examples/plugins/ offers.

    python scripts/plugin_index.py

It reads the folders as `smollm3 plugins index` does, and adds where each is in this repository.
`tests/installing/test_index.py` compares the file with what this script writes.
"""

from __future__ import annotations

import json
from dataclasses import replace

from gallery.plugins import BUNDLED, EXAMPLES, plugins

from smollm3_finetune.components.registry import INDEX_FILE
from smollm3_finetune.installing.offers import index_of, offered_by

FOLDERS = {BUNDLED: True, EXAMPLES: False}
"""The folders of plugins, and whether their plugins are released with smollm3-finetune."""


def text() -> str:
    """The content of index.json."""
    return index_of(
        replace(offered_by(p.folder, published), folder=p.place)
        for above, published in FOLDERS.items()
        for p in plugins(above)
    )


if __name__ == "__main__":
    INDEX_FILE.write_text(text(), encoding="utf-8")
    print(f"{INDEX_FILE}: {len(json.loads(INDEX_FILE.read_text(encoding='utf-8'))['plugins'])} plugins")
