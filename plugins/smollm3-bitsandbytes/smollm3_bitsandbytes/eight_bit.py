"""`bnb-8bit`: LLM.int8 weights with one scale per row, quantized by bitsandbytes while loading.

Source: LLM.int8(), arXiv:2208.07339, section 2.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
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
from smollm3_bitsandbytes.eight_bit_linear import FrozenLinear8bit
from smollm3_bitsandbytes.options import Bnb8bitOptions
from smollm3_bitsandbytes.outputs import own_outputs
from smollm3_bitsandbytes.round_trip import BnbRoundTrip, eight_bits
from smollm3_finetune.api import Base, BuildContext, LinearOps, ModelSource, Op, quantize_experts

NAME = "bnb-8bit"
OPS = frozenset({Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT})
DEQUANTIZING = ("cpu", "xpu")
"""Device types on which bitsandbytes can multiply by the dequantized weight."""
FORWARD_RTOL = 0.1
"""Relative error of a layer's output on the other devices, from rounding the activations to 8 bits.

Measured with bitsandbytes' own reference kernel at the default threshold: on a pretrained model of 135 M parameters,
0.02 for the median layer and 0.08 for the worst (0.12 with `threshold: 0`); on random weights and inputs, 0.007.
"""


@dataclass(frozen=True)
class Bnb8bitOps:
    """The operations of one `bitsandbytes.nn.Linear8bitLt`."""

    layer: Any

    @property
    def ops(self) -> frozenset[Op]:
        return OPS

    @property
    def forward_rtol(self) -> float:
        """0 if the layer multiplies by the dequantized weight; otherwise it rounds activations to 8 bits."""
        return 0.0 if self.layer.device.type in DEQUANTIZING else FORWARD_RTOL

    @property
    def shape(self) -> tuple[int, int]:
        return self.layer.out_features, self.layer.in_features

    def read_weight(self) -> Tensor:
        """The weight (out, in), as a new float32 tensor on the layer's device."""
        with torch.no_grad():
            return self.layer.dense()


class _CastMessageFilter(logging.Filter):
    """Drops the message that bitsandbytes logs for every layer in every forward on a GPU: inputs are cast to float16.

    The inputs are rounded to 8 bits afterwards; `forward_rtol` states the error of that.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


_FILTER = _CastMessageFilter()


def ops_for(layer: nn.Module) -> LinearOps | None:
    """The operations of an 8-bit layer; None for any other layer."""
    return Bnb8bitOps(layer) if isinstance(layer, FrozenLinear8bit) else None


def quantized(linear: nn.Linear, threshold: float, device: str) -> nn.Module:
    """The 8-bit layer on `device` of a linear layer, as transformers makes one while it loads."""
    layer = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=threshold, device="meta"
    )
    layer.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False).to(device)
    layer.bias = linear.bias
    FrozenLinear8bit.hold(layer)
    own_outputs(layer)
    return layer


class Bnb8bitQuantizer:
    """Loads a model with its linear layers in 8 bits, or a checkpoint that is already in 8 bits."""

    def __init__(self, options: Bnb8bitOptions) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """The frozen model on `ctx.device`; unquantized tensors (embeddings, norms, head) are in `ctx.dtype`.

        Raises ConfigError if options contradict a checkpoint that is already in 8 bits, or name a layer that does not
        exist; IncompatibleError if the checkpoint was quantized in another way. Both before weights are read.
        """
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_FILTER)  # adding it twice has no effect
        stored = stored_quantization(source, bits=8)
        plan = self._plan(source, stored)
        kwargs: dict[str, Any] = {}
        threshold = float(self.options.threshold)
        if stored is None:
            kwargs["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=True,
                llm_int8_threshold=threshold,
                llm_int8_skip_modules=all_skipped(NAME, source, self.options.skip_modules),
            )
        model = source.load(dtype=ctx.torch_dtype, device_map={"": ctx.device}, **kwargs)
        for layer in model.modules():
            if isinstance(layer, bnb.nn.Linear8bitLt):
                FrozenLinear8bit.hold(layer)
                own_outputs(layer)
        if stored is None:
            skip = self.options.skip_modules

            def made(linear: nn.Linear) -> nn.Module:
                return quantized(linear, threshold, ctx.device)

            if replace_others(NAME, model, ctx, skip, made):
                plan["others"] = True
            if quantize_experts(model, ctx, name=NAME, replace=made, ops=ops_for, skip_modules=skip):
                plan["experts"] = True
        model.requires_grad_(False)
        return Base(model=model, fingerprint=base_fingerprint(NAME, source, ctx, **plan), ops_for=ops_for)

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """See `smollm3_bitsandbytes.checkpoint.write_checkpoint`."""
        write_checkpoint(NAME, self.load, source, out, ctx)

    def round_trip(self, source: ModelSource, ctx: BuildContext) -> BnbRoundTrip:
        """See `smollm3_finetune.api.RoundTripMaker`."""
        options = self.options
        return BnbRoundTrip(lambda model: quantized_layers(NAME, model, options.skip_modules), eight_bits)

    def _plan(self, source: ModelSource, stored: Mapping[str, Any] | None) -> dict[str, Any]:
        """The options that determine the weights; the threshold affects only activations."""
        if stored is None:
            return {"skip_modules": sorted(self.options.skip_modules)}
        has = {
            "threshold": float(stored.get("llm_int8_threshold", 6.0)),
            "skip_modules": tuple(stored.get("llm_int8_skip_modules") or ()),
        }
        refuse_contradictions(NAME, source, self.options, has)
        return {"stored": True}
