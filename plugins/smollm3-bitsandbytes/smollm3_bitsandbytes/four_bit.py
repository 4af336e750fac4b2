"""`bnb-4bit`: NF4 and FP4 weights in blocks of 64, quantized by bitsandbytes while loading.

Source: QLoRA, arXiv:2305.14314, section 3 (NF4, double quantization).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import BitsAndBytesConfig

from smollm3_bitsandbytes.checkpoint import (
    all_skipped,
    base_fingerprint,
    quantized_layers,
    refuse_contradictions,
    replace_others,
    stored_quantization,
    write_checkpoint,
)
from smollm3_bitsandbytes.four_bit_linear import FrozenLinear4bit
from smollm3_bitsandbytes.options import Bnb4bitOptions
from smollm3_bitsandbytes.outputs import own_outputs
from smollm3_bitsandbytes.round_trip import BnbRoundTrip, four_bits
from smollm3_finetune.api import (
    Base,
    BuildContext,
    DequantizingOps,
    LinearOps,
    ModelSource,
    quantize_experts,
)

NAME = "bnb-4bit"


def ops_for(layer: nn.Module) -> LinearOps | None:
    """The operations of a 4-bit layer; None for any other layer."""
    if not isinstance(layer, FrozenLinear4bit):
        return None
    return DequantizingOps(layer, FrozenLinear4bit.dense, layer.compute_dtype)


class Bnb4bitQuantizer:
    """Loads a model with its linear layers in 4 bits, or a checkpoint that is already in 4 bits."""

    def __init__(self, options: Bnb4bitOptions) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """The frozen model on `ctx.device`; unquantized tensors (embeddings, norms, head) are in `ctx.dtype`.

        Raises ConfigError if options contradict a checkpoint that is already in 4 bits, or name a layer that does not
        exist; IncompatibleError if the checkpoint was quantized in another way. Both before weights are read.
        """
        stored = stored_quantization(source, bits=4)
        plan = self._plan(source, stored)
        compute = self._compute_dtype(ctx)
        kwargs: dict[str, Any] = {}
        if stored is None:
            kwargs["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=plan["quant_type"],
                bnb_4bit_use_double_quant=plan["double_quant"],
                bnb_4bit_compute_dtype=compute,
                llm_int8_skip_modules=all_skipped(NAME, source, self.options.skip_modules),
            )
        # bitsandbytes cannot quantize float64, and for a float64 input its CPU kernel returns uninitialized memory.
        dtype = torch.float32 if ctx.torch_dtype == torch.float64 else ctx.torch_dtype
        model = source.load(dtype=dtype, device_map={"": ctx.device}, **kwargs)
        for layer in model.modules():
            if isinstance(layer, bnb.nn.Linear4bit):
                FrozenLinear4bit.hold(layer, compute)
                own_outputs(layer)
        if stored is None:
            skip = self.options.skip_modules

            def made(linear: nn.Linear) -> nn.Module:
                return quantized(linear, compute, plan, ctx.device)

            if replace_others(NAME, model, ctx, skip, made):
                plan["others"] = True
            if quantize_experts(model, ctx, name=NAME, replace=made, ops=ops_for, skip_modules=skip):
                plan["experts"] = True
        if ctx.torch_dtype == torch.float64:
            _widen(model)
        model.requires_grad_(False)
        return Base(model=model, fingerprint=base_fingerprint(NAME, source, ctx, **plan), ops_for=ops_for)

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """See `smollm3_bitsandbytes.checkpoint.write_checkpoint`."""
        write_checkpoint(NAME, self.load, source, out, ctx)

    def round_trip(self, source: ModelSource, ctx: BuildContext) -> BnbRoundTrip:
        """See `smollm3_finetune.api.RoundTripMaker`."""
        options = self.options
        return BnbRoundTrip(
            lambda model: quantized_layers(NAME, model, options.skip_modules),
            lambda weight: four_bits(weight, options.quant_type, options.double_quant),
        )

    def _plan(self, source: ModelSource, stored: Mapping[str, Any] | None) -> dict[str, Any]:
        """The options that determine the weights."""
        options = self.options
        if stored is None:
            return {
                "quant_type": options.quant_type,
                "double_quant": options.double_quant,
                "skip_modules": sorted(options.skip_modules),
            }
        has = {
            "quant_type": stored.get("bnb_4bit_quant_type", "fp4"),
            "double_quant": bool(stored.get("bnb_4bit_use_double_quant", False)),
            "skip_modules": tuple(stored.get("llm_int8_skip_modules") or ()),
        }
        refuse_contradictions(NAME, source, options, has)
        return {"stored": True}

    def _compute_dtype(self, ctx: BuildContext) -> torch.dtype:
        if self.options.compute_dtype != "auto":
            dtype: torch.dtype = getattr(torch, self.options.compute_dtype)
            return dtype
        return torch.float32 if ctx.torch_dtype == torch.float64 else ctx.torch_dtype


def quantized(linear: nn.Linear, compute: torch.dtype, plan: Mapping[str, Any], device: str) -> nn.Module:
    """The 4-bit layer on `device` of a linear layer, as transformers makes one while it loads."""
    how = {"compress_statistics": plan["double_quant"], "quant_type": plan["quant_type"]}
    layer = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=compute, device="meta", **how
    )
    layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, **how).to(device)
    layer.bias = linear.bias
    FrozenLinear4bit.hold(layer, compute)
    own_outputs(layer)
    return layer


def _widen(model: nn.Module) -> None:
    """Convert every unquantized parameter to float64; a 4-bit layer casts its input and its output."""
    for module in model.modules():
        if not isinstance(module, bnb.nn.Linear4bit):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.float64)
