"""The options of `hqq`. Light: no torch, no hqq."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class HQQOptions:
    """Options of `hqq`."""

    bits: Literal[8, 4, 3, 2] = option(4, "Bits of a weight.")
    group_size: int | None = option(
        64, "Weights that share a scale and a zero point; none: a whole row (axis 1) or column (axis 0).",
        ge=8, multiple_of=8,
    )  # fmt: skip
    axis: Literal[1, 0] = option(1, "1: groups run along the inputs of a layer; 0: along its outputs.")
    skip_modules: tuple[str, ...] = option(
        (), "Names of layers, or of modules that hold some, to leave unquantized, beside the output head."
    )
