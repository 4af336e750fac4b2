"""Quantizer `hqq`: half-quadratic quantization, made by the library hqq while a model is loaded.

Only the descriptor is here; torch, transformers and hqq are imported when a run names it.
"""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import ModelSource, Op, QuantizerSpec, Requires, group_size_error, hookimpl, refuse_quantized

PACKED = "weights are stored as codes of few bits with scales"


def check(options: Any, source: ModelSource) -> None:
    """Refuse a source that is quantized already, or a group size that its hidden size is no multiple of.

    From `config.json` alone. Raises IncompatibleError and ConfigError. The other sizes of the layers are looked at
    when the model is loaded, still before its weights are read.
    """
    refuse_quantized(
        "hqq", source, "name the full-precision checkpoint; those that hqq itself saved are not read either"
    )
    hidden = source.config.get("hidden_size")
    if isinstance(hidden, int) and not options.skip_modules and options.group_size and hidden % options.group_size:
        raise group_size_error("hqq", options.group_size, f"the {hidden} features of {source.ref!r}", [hidden])


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="hqq",
            summary="half-quadratic quantization (HQQ) to 8, 4, 3 or 2 bits while loading, without calibration",
            factory="smollm3_hqq.quantizer:HQQQuantizer",
            options="smollm3_hqq.options:HQQOptions",
            requires=Requires(distributions=("hqq>=0.2.8,<0.3",)),
            provides={Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT},
            absent={
                Op.DENSE: f"{PACKED}, so `.weight` is not a floating-point matrix",
                Op.GRAD_WEIGHT: f"{PACKED}, which cannot take a gradient step",
            },
            check=check,
        )
    ]
