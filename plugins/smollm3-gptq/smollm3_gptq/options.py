"""Options of `gptq`. Imports neither torch nor gptqmodel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class GPTQOptions:
    """Options of `gptq`. If a checkpoint is already quantized, an option that is not set takes its value."""

    bits: Literal[2, 3, 4, 8] = option(
        4,
        "Bits per weight. A quantized checkpoint keeps the bits that it was written with.",
        former_values={None: 4},
    )
    group_size: int | None = option(
        None,
        "Input features that share a scale and a zero point; -1: a whole row; none: the largest of 128, 64, 32 and "
        "16 that divides the input width of every layer, otherwise -1.",
        ge=-1,
    )
    desc_act: bool = option(
        False,
        "Quantize input features in the order of their activations (act-order).",
        former_values={None: False},
    )
    sym: bool = option(True, "Symmetric: the zero point is the middle of the code range.", former_values={None: True})
    damp_percent: float = option(0.05, "Added to the diagonal of the Hessian, as a fraction of its mean.", gt=0, lt=1)
    kernel: Literal["dequantize", "gptqmodel"] = option(
        "dequantize",
        "Kernel of the matrix products: dequantize (in PyTorch; trains, on any device), or gptqmodel (its fastest for "
        "the device; only for inference, because its kernels have no gradient).",
        former_values={"dequantise": "dequantize"},
    )
