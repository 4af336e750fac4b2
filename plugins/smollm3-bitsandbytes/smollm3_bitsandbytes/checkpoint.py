"""What both quantizers check in `config.json` before any weights are read, and how they name the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smollm3_finetune.api import (
    BuildContext,
    ConfigError,
    IncompatibleError,
    ModelSource,
    architecture_of,
    fingerprint,
    rounding_dtype,
)

ALWAYS_SKIPPED = ("lm_head",)
"""Left unquantized where the architecture cannot be built without weights to find its output head."""


def stored_quantization(source: ModelSource, *, bits: int) -> Mapping[str, Any] | None:
    """The `quantization_config` of a checkpoint that is quantized already; None for a full-precision one.

    Raises IncompatibleError where another method wrote it, or bitsandbytes with another number of bits.
    """
    stored = source.config.get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    method = stored.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise IncompatibleError(
            f"bnb-{bits}bit cannot load {source.ref!r}: its weights are already quantized by {method}",
            hint="leave --quant out to load it as it is, or name a full-precision checkpoint",
        )
    other = 12 - bits
    if stored.get(f"load_in_{other}bit") or not stored.get(f"load_in_{bits}bit"):
        raise IncompatibleError(
            f"bnb-{bits}bit cannot load {source.ref!r}: bitsandbytes quantized its weights to {other} bits",
            hint=f"use --quant bnb-{other}bit",
        )
    if stored.get("llm_int8_has_fp16_weight"):
        raise IncompatibleError(
            f"bnb-{bits}bit cannot load {source.ref!r}: it keeps 16-bit weights beside the 8-bit ones "
            "(llm_int8_has_fp16_weight), which this quantizer does not do",
            hint="name a full-precision checkpoint",
        )
    return stored


def refuse_contradictions(name: str, source: ModelSource, asked: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raise ConfigError where an option that was given says other than the quantized checkpoint does.

    None and an empty tuple in `asked` mean that the option was not given. Of layers left unquantized the checkpoint
    may have more: the output head is always among them.
    """
    wrong = [
        f"{key} is {_shown(value)}, but the checkpoint has {_shown(stored[key])}"
        for key, value in asked.items()
        if value is not None
        and not (set(value) <= set(stored[key]) if isinstance(value, tuple) else value == stored[key])
    ]
    if wrong:
        raise ConfigError(
            f"{name}: {source.ref!r} is already quantized and cannot be quantized otherwise: {'; '.join(wrong)}",
            hint="leave the option out, or name a full-precision checkpoint",
        )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


def all_skipped(name: str, source: ModelSource, skip_modules: Iterable[str]) -> list[str] | None:
    """`skip_modules` and the output head, for transformers, which forgets the head once a list is given.

    A quantized head would lose its tie to the embeddings. None leaves the choice to transformers. The names are
    checked against the architecture built without weights; raises ConfigError for one that matches no linear layer.
    """
    asked = list(skip_modules)
    if not asked:
        return None
    skeleton = architecture_of(source)
    if skeleton is None:
        return [*asked, *ALWAYS_SKIPPED]
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    linears = [n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear)]
    for key in asked:
        if all(should_convert_module(linear, [key]) for linear in linears):
            layers = sorted({linear.rsplit(".", 1)[-1] for linear in linears})
            raise ConfigError(
                f"{name}: skip_modules names {key!r}, which matches no linear layer of {source.ref!r}",
                hint=f"its linear layers are {', '.join(layers)}",
            )
    return sorted({*asked, *get_keys_to_not_convert(skeleton)})


def base_fingerprint(name: str, source: ModelSource, ctx: BuildContext, **decides: Any) -> str:
    """Identifies the quantized weights: the source's, the method, and the options that alter a weight.

    The run's dtype counts only where it rounds the checkpoint before it is quantized, so that an adapter trained
    in bfloat16 finds the same base in float32 when the checkpoint is in bfloat16.
    """
    return fingerprint(source.fingerprint, name, rounding_dtype(source, ctx), decides)
