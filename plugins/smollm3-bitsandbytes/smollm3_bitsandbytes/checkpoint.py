"""Checks of `config.json` before weights are read, and the fingerprint of the base, for both quantizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ConfigError,
    IncompatibleError,
    ModelSource,
    architecture_of,
    expert_stacks,
    fingerprint,
    given,
    linear_layers,
    refuse_quantized,
    round_trip_layers,
    rounding_dtype,
    say_unreplaced,
    stacked_weights,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ALWAYS_SKIPPED = ("lm_head",)
"""Layers left unquantized if the architecture cannot be built without weights to find its output head."""


def stored_quantization(source: ModelSource, *, bits: int) -> Mapping[str, Any] | None:
    """The `quantization_config` of a quantized checkpoint; None if the checkpoint is full-precision.

    Raises IncompatibleError if another method quantized it, or bitsandbytes with another number of bits.
    """
    stored = source.config.get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    method = stored.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise IncompatibleError(
            f"bnb-{bits}bit cannot load {source.ref!r}: its weights are already quantized by {method}",
            hint="leave --quant out to load it as it is, or use a full-precision checkpoint",
        )
    other = 12 - bits
    if stored.get(f"load_in_{other}bit") or not stored.get(f"load_in_{bits}bit"):
        raise IncompatibleError(
            f"bnb-{bits}bit cannot load {source.ref!r}: bitsandbytes quantized its weights to {other} bits",
            hint=f"use --quant bnb-{other}bit",
        )
    if stored.get("llm_int8_has_fp16_weight"):
        raise IncompatibleError(
            f"bnb-{bits}bit cannot load {source.ref!r}: it has 16-bit weights in addition to the 8-bit weights "
            "(llm_int8_has_fp16_weight), which this quantizer does not support",
            hint="use a full-precision checkpoint",
        )
    return stored


def refuse_contradictions(name: str, source: ModelSource, options: Any, stored: Mapping[str, Any]) -> None:
    """Raises ConfigError if an option that was set contradicts the quantized checkpoint.

    The checkpoint may have more unquantized layers than `skip_modules`: the output head is always one of them.
    """
    asked = {key: getattr(options, key) for key in stored if key in given(options)}
    wrong = [
        f"{key} is {_shown(value)}, but the checkpoint has {_shown(stored[key])}"
        for key, value in asked.items()
        if not (set(value) <= set(stored[key]) if isinstance(value, tuple) else value == stored[key])
    ]
    if wrong:
        raise ConfigError(
            f"{name}: {source.ref!r} is already quantized and cannot be quantized again: {'; '.join(wrong)}",
            hint="leave the option out, or use a full-precision checkpoint",
        )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


def all_skipped(name: str, source: ModelSource, skip_modules: Iterable[str]) -> list[str] | None:
    """`skip_modules`, the output head and layers whose weights are read; None if transformers may choose.

    If transformers receives a list, it no longer adds the head, and a quantized head would lose its tie to the
    embeddings. The names are checked against the architecture, built without weights. Raises ConfigError if a name
    matches no linear layer and no stacked weight of experts.
    """
    asked = list(skip_modules)
    skeleton = architecture_of(source)
    if skeleton is None:
        return [*asked, *ALWAYS_SKIPPED] if asked else None
    read = linear_layers(skeleton)[1]
    if not asked and not read:
        return None
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    names = [n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear)] + list(expert_stacks(skeleton))
    for key in asked:
        if all(should_convert_module(n, [key]) for n in names):
            layers = sorted({n.rsplit(".", 1)[-1] for n in names})
            raise ConfigError(
                f"{name}: skip_modules names {key!r}, which matches no linear layer of {source.ref!r}",
                hint=f"linear layers of the model: {', '.join(layers)}",
            )
    return sorted({*asked, *read, *get_keys_to_not_convert(skeleton)})


def replace_others(
    name: str, model: PreTrainedModel, ctx: BuildContext, skip_modules: Iterable[str], replace: Callable[[Any], Any]
) -> bool:
    """Quantize the linear layers of `model` that transformers leaves dense because they are of a subclass, as Falcon's.

    Also says which layers stay dense because the model's code reads their weights; whether there is any such layer.
    """
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    layers, read = linear_layers(model)
    skipped = [*skip_modules, *get_keys_to_not_convert(model)]
    ours = {n: m for n, m in layers.items() if _is_subclass(m) and should_convert_module(n, skipped)}
    for key, linear in ours.items():
        model.set_submodule(key, replace(linear))
    unread = [n for n in read if should_convert_module(n, skipped)]
    say_unreplaced(name, unread, ctx)
    return bool(ours or unread)


def quantized_layers(name: str, model: PreTrainedModel, skip_modules: Iterable[str]) -> list[str]:
    """Names of the linear layers of a dense `model` that a quantizer replaces. Raises IncompatibleError for experts."""
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = [*skip_modules, *get_keys_to_not_convert(model)]
    return list(
        round_trip_layers(model, name, [n for n in linear_layers(model)[0] if should_convert_module(n, skipped)])
    )


def write_checkpoint(
    name: str, load: Callable[[ModelSource, BuildContext], Base], source: ModelSource, out: Path, ctx: BuildContext
) -> None:
    """Write the checkpoint that transformers writes, of the model that `load` returns, into the empty directory `out`.

    The codes are those that `load` finds in float32. Raises IncompatibleError if the source is already quantized, or
    has quantized layers that transformers would read unquantized.
    """
    refuse_unwritable(name, source)
    exact = rounding_dtype(source, ctx) is None and ctx.dtype != "float64"
    write_model(load(source, ctx if exact else dataclasses.replace(ctx, dtype="float32")), out, ctx.torch_dtype)


def refuse_unwritable(name: str, source: ModelSource) -> None:
    """Raises an error if transformers would not read all layers of a checkpoint of `source` as this quantizer does."""
    refuse_quantized(name, source)
    skeleton = architecture_of(source)
    if skeleton is None:
        return
    others = sorted(n for n, m in linear_layers(skeleton)[0].items() if _is_subclass(m))
    if unread := [*stacked_weights(skeleton), *others]:
        raise IncompatibleError(
            f"{name} cannot write a checkpoint of {source.ref!r}: transformers reads {unread[0]!r} unquantized",
            hint=f"load the full-precision checkpoint with --quant {name}",
        )


def write_model(base: Base, out: Path, dtype: torch.dtype) -> None:
    """Write the quantized model of `base` into `out` as transformers does; unquantized weights are cast to `dtype`."""
    model = base.model
    for module in model.modules():
        if base.ops_for(module) is None:
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(str(out))


def _is_subclass(layer: Any) -> bool:
    """Whether a layer is dense and of a subclass. transformers leaves a plain `nn.Linear` dense only on purpose."""
    import torch

    return type(layer) is not torch.nn.Linear and type(layer).__module__.partition(".")[0] != "bitsandbytes"


def base_fingerprint(name: str, source: ModelSource, ctx: BuildContext, **options: Any) -> str:
    """The fingerprint of the quantized weights: of the source, the method, and the options that change a weight.

    It depends on the run's dtype only if that dtype rounds the checkpoint before quantization. An adapter trained in
    bfloat16 on a bfloat16 checkpoint therefore finds the same base in float32.
    """
    return fingerprint(source.fingerprint, name, rounding_dtype(source, ctx), options)
