"""Quantizer `torchao-int8`: weights in 8 bits, made by torchao while a model is loaded.

Only the descriptor is here; torch, transformers and torchao are imported when a run names it.
"""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import ConfigError, IncompatibleError, ModelSource, Op, QuantizerSpec, Requires, hookimpl

HIDDEN = "`.weight` is a tensor of torchao's own class with 8-bit codes inside"
SIZES = (256, 128, 64, 32, 16, 8)
"""Group sizes to propose, largest first."""


def check(options: Any, source: ModelSource) -> None:
    """Refuse a source that is quantised already, or a group size that its hidden size is no multiple of.

    From `config.json` alone. Raises IncompatibleError and ConfigError. The other sizes of the layers are looked at
    when the model is loaded, still before its weights are read.
    """
    stored = source.config.get("quantization_config")
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else None
        raise IncompatibleError(
            f"torchao-int8 cannot load {source.ref!r}: its weights are already quantised by "
            f"{method or 'another method'}",
            hint="name the full-precision checkpoint; those that torchao itself quantised are not read either",
        )
    hidden = source.config.get("hidden_size")
    if isinstance(hidden, int) and not options.skip_modules and options.group_size and hidden % options.group_size:
        raise no_such_group(options.group_size, f"the {hidden} features of {source.ref!r}", [hidden])


def no_such_group(group_size: int, what: str, features: list[int]) -> ConfigError:
    """The error for a group size that does not divide `features`."""
    fitting = [size for size in SIZES if not any(n % size for n in features)]
    hint = f"--quant-opt group_size={fitting[0]}" if fitting else "--quant-opt group_size=none takes whole rows"
    return ConfigError(f"torchao-int8: groups of {group_size} do not divide {what}", hint=hint)


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
