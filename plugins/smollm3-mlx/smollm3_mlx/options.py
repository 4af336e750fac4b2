"""Options of the exporter `mlx`. Imports neither torch nor mlx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class MlxOptions:
    """Options of the exporter `mlx`."""

    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "bfloat16", "Dtype of the weights; with bits: of scales and of the weights that are not quantized."
    )
    bits: Literal[4, 8] | None = option(
        None, "Quantize linear layers and embeddings to this many bits (default: not quantized). Needs mlx-lm."
    )
    group_size: Literal[32, 64, 128] = option(64, "Weights that share a scale; with bits only.")
