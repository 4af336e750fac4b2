"""Quantizer `hqq`: half-quadratic quantisation, made by the library hqq while a model is loaded.

Only the descriptor is here; torch, transformers and hqq are imported when a run names it.
"""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import ConfigError, IncompatibleError, ModelSource, Op, QuantizerSpec, Requires, hookimpl

PACKED = "weights are stored as codes of few bits with scales"
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
            f"hqq cannot load {source.ref!r}: its weights are already quantised by {method or 'another method'}",
            hint="name the full-precision checkpoint; those that hqq itself saved are not read either",
        )
    hidden = source.config.get("hidden_size")
    if isinstance(hidden, int) and not options.skip_modules and options.group_size and hidden % options.group_size:
        raise no_such_group(options.group_size, f"the {hidden} features of {source.ref!r}", [hidden])


def no_such_group(group_size: int, what: str, features: list[int]) -> ConfigError:
    """The error for a group size that does not divide `features`."""
    fitting = [size for size in SIZES if not any(n % size for n in features)]
    hint = f"--quant-opt group_size={fitting[0]}" if fitting else "--quant-opt group_size=none takes whole rows"
    return ConfigError(f"hqq: groups of {group_size} do not divide {what}", hint=hint)


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="hqq",
            summary="half-quadratic quantisation (HQQ) to 8, 4, 3 or 2 bits while loading, without calibration",
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
