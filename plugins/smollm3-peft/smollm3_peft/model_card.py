"""The model card of a saved adapter. It is built from the adapter's config; PEFT's own reads the base's cache path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags:
- base_model:adapter
- {method}
---

# {title}

A PEFT adapter of type {kind} for `{name}`, trained with smollm3-finetune and PEFT {version}.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("this directory")
```
"""


def write_card(directory: Path, model: Any) -> None:
    """Write README.md if the directory has none."""
    import peft

    path = directory / "README.md"
    if path.exists():
        return
    config = model.peft_config["default"]
    kind = config.peft_type.value
    name = config.base_model_name_or_path or "its base"
    path.write_text(
        _CARD.format(
            base=json.dumps(name),
            method=kind.lower().replace("_", "-"),
            title=f"{kind} adapter",
            kind=kind,
            name=name,
            version=peft.__version__,
        ),
        encoding="utf-8",
    )
