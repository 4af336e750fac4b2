"""The options of both quantizers. Light: no torch, no bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class Bnb4bitOptions:
    """Options of `bnb-4bit`. An option left at None takes the value of a checkpoint that is already in 4 bits."""

    quant_type: Literal["nf4", "fp4"] | None = option(
        None, "Code table: nf4 (normal-float, the default) or fp4; a quantized checkpoint keeps its own."
    )
    double_quant: bool | None = option(
        None, "Quantize the block scales too: 4.13 instead of 4.5 bits a weight (default true, as in QLoRA)."
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "What weights are dequantized to and multiplied in; auto: the run's dtype (float32 for float64)."
    )
    skip_modules: tuple[str, ...] = option(
        (), "Names of linear layers to leave unquantized, beside the output head (which always is)."
    )


@dataclass(frozen=True, kw_only=True)
class Bnb8bitOptions:
    """Options of `bnb-8bit`. An option left at None takes the value of a checkpoint that is already in 8 bits."""

    threshold: float | None = option(
        None,
        "On a GPU, input features with a value of this magnitude are multiplied unrounded (default 6; 0: none are).",
        ge=0,
    )
    skip_modules: tuple[str, ...] = option(
        (), "Names of linear layers to leave unquantized, beside the output head (which always is)."
    )
