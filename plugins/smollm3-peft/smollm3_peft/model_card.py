"""The model card beside a saved adapter, written from what is at hand: PEFT's own reads the base's cache path."""

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

An adapter of PEFT's type {kind} for `{name}`, made with smollm3-finetune and PEFT {version}.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("this directory")
```
"""


def write_card(directory: Path, model: Any) -> None:
    """Write README.md, unless the directory has one."""
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
