"""Options that users set with `--quant-opt`, and the memory that they lead to. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import Env, LayerBytes, frozen_linear_bytes, option

BITS = {"int8": 8, "float8": 8, "int4": 4, "int2": 2}


@dataclass(frozen=True, kw_only=True)
class QuantoOptions:
    weights: Literal["int8", "float8", "int4", "int2"] = option("int8", "Type of the stored weights.")
    group_size: int | None = option(
        None, "Inputs that share a scale with int4 and int2; none: 128, or the next multiple of 32 that fits.", ge=8
    )
    skip_modules: tuple[str, ...] = option((), "Names of linear layers to leave unquantized, beside the output head.")


def group_size_of(options: QuantoOptions, in_features: int) -> int:
    """The inputs of a layer that share a scale: the whole row with 8 bits, and where no group fits."""
    if BITS[options.weights] == 8:
        return in_features
    fitting = (size for size in (128, 96, 64, 32) if size < in_features and in_features % size == 0)
    return options.group_size or next(fitting, in_features)


def bytes_for(options: QuantoOptions, shape: tuple[int, int], env: Env) -> LayerBytes:
    """Codes, and a scale in float32 for each group; below 8 bits also a shift, and codes that share bytes."""
    out, inputs = shape
    size, bits = group_size_of(options, inputs), BITS[options.weights]
    groups = out * inputs // size
    rows = -(-groups * bits // 8)
    kept = rows * size + groups * (4 if bits == 8 else 8)
    return LayerBytes(kept=kept, sharded=kept, transient=frozen_linear_bytes(out * inputs, env, peak=9))
