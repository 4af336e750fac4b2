"""Options of the loader and the exporter `gguf`. Imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class GgufOptions:
    """Options of the loader `gguf`."""

    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "Dtype of the dequantized copy: float32 keeps every value; the others need half the disk space."
    )
    revision: str | None = option(None, "Branch, tag or commit of the Hub repository (default: its main branch).")


@dataclass(frozen=True, kw_only=True)
class GgufExportOptions:
    """Options of the exporter `gguf`."""

    type: Literal[
        "f32", "f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1",
        "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k",
    ] = option(
        "f16", "Type of the weights. Types with a k need llama-cpp-python: pip install 'llama-cpp-python>=0.3.36'"
    )  # fmt: skip
    modelfile: bool = option(False, "Also write an Ollama Modelfile: template, stop tokens, sampling defaults.")
