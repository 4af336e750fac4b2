"""The options of loader `gguf`. Light: no torch, no transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class GgufOptions:
    """Options of `gguf`."""

    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "What the dequantized copy is stored in: float32 keeps every value; the others halve the disk."
    )
    revision: str | None = option(None, "Branch, tag or commit of the Hub repository (default: its main branch).")
