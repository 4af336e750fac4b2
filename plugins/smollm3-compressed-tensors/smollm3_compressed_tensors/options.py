"""The options of `compressed-tensors`. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class CompressedTensorsOptions:
    """Options of `compressed-tensors` for full-precision models. A quantized checkpoint takes none of them."""

    scheme: Literal["W4A16", "W4A16_ASYM", "W8A16", "FP8A16", "FP8_DYNAMIC"] = option(
        "W4A16",
        "W4A16 and W8A16: integers of 4 or 8 bits in groups, symmetric; W4A16_ASYM: with zero points; FP8A16: 8-bit "
        "floats with a scale per row; FP8_DYNAMIC: the same weights, and vLLM rounds activations to 8-bit floats too.",
    )
    group_size: int | None = option(
        None,
        "Input features that share a scale; -1: a whole row; none: the largest of 128, 64 and 32 that divides the "
        "input width of every layer, otherwise -1. FP8 schemes have whole rows.",
        ge=-1,
    )
    skip_modules: tuple[str, ...] = option(
        (), "Names of layers, or of modules that hold some, to leave unquantized, beside the output head."
    )
