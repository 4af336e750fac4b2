"""Quantizer `torchao-int8`: weights in 8 bits, made by torchao while a model is loaded.

Only the descriptor is here; torch, transformers and torchao are imported when a run names it.
"""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import ModelSource, Op, QuantizerSpec, Requires, group_size_error, hookimpl, refuse_quantized

HIDDEN = "`.weight` is a tensor of torchao's own class with 8-bit codes inside"


def check(options: Any, source: ModelSource) -> None:
    """Refuse a source that is quantized already, or a group size that its hidden size is no multiple of.

    From `config.json` alone. Raises IncompatibleError and ConfigError. The other sizes of the layers are looked at
    when the model is loaded, still before its weights are read.
    """
    refuse_quantized(
        "torchao-int8",
        source,
        "name the full-precision checkpoint; those that torchao itself quantized are not read either",
    )
    hidden = source.config.get("hidden_size")
    if isinstance(hidden, int) and not options.skip_modules and options.group_size and hidden % options.group_size:
        raise group_size_error("torchao-int8", options.group_size, f"the {hidden} features of {source.ref!r}", [hidden])


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="torchao-int8",
            summary="torchao's weight-only int8: 8-bit weights, a scale for each row or group, made while loading",
            factory="smollm3_torchao.quantizer:TorchaoInt8Quantizer",
            options="smollm3_torchao.options:TorchaoInt8Options",
            requires=Requires(distributions=("torchao>=0.18,<0.19",)),
            provides={Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT},
            absent={
                Op.DENSE: f"{HIDDEN}, which cannot be replaced by other values",
                Op.GRAD_WEIGHT: f"{HIDDEN}, which cannot take a gradient step",
            },
            check=check,
        )
    ]
