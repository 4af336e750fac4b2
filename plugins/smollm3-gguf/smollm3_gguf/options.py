"""Options of the loader `gguf`. Imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class GgufOptions:
    """Options of `gguf`."""

    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "Dtype of the dequantized copy: float32 keeps every value; the others need half the disk space."
    )
    revision: str | None = option(None, "Branch, tag or commit of the Hub repository (default: its main branch).")
