"""Options of both quantizers. Imports neither torch nor bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class Bnb4bitOptions:
    """Options of `bnb-4bit`. If a checkpoint is already in 4 bits, an option that is not set takes its value."""

    quant_type: Literal["nf4", "fp4"] = option(
        "nf4",
        "Data type of the codes: nf4 (NormalFloat) or fp4. A quantized checkpoint keeps its own.",
        former_values={None: "nf4"},
    )
    double_quant: bool = option(
        True,
        "Quantize the block scales too, as in QLoRA: 4.13 instead of 4.5 bits per weight. A quantized checkpoint keeps "
        "its scales.",
        former_values={None: True},
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "Dtype of the dequantized weights and the matrix products; auto: the run's dtype (float32 in a float64 run).",
    )
    skip_modules: tuple[str, ...] = option(
        (), "Names of linear layers to leave unquantized, in addition to the output head."
    )


@dataclass(frozen=True, kw_only=True)
class Bnb8bitOptions:
    """Options of `bnb-8bit`. If a checkpoint is already in 8 bits, an option that is not set takes its value."""

    threshold: float = option(
        6.0,
        "On a GPU, input features with values of at least this magnitude are not rounded (0: round all). A quantized "
        "checkpoint keeps its own.",
        ge=0,
        former_values={None: 6.0},
    )
    skip_modules: tuple[str, ...] = option(
        (), "Names of linear layers to leave unquantized, in addition to the output head."
    )
