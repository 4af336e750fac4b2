"""Quantizer `hqq`: quantizes the linear layers of a full-precision model, and writes and reads checkpoints."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from smollm3_finetune.api import (
    Base,
    BuildContext,
    IncompatibleError,
    ModelSource,
    StoredLayers,
    load_layerwise,
    ops_for_layers,
    options_dict,
    rounding_dtype,
)
from smollm3_hqq.checkpoint import NAME, described, load_checkpoint, quantized_layers, write
from smollm3_hqq.linear import Linear
from smollm3_hqq.options import HQQOptions
from smollm3_hqq.round_trip import HQQRoundTrip


class HQQQuantizer:
    """Loads a model with its linear layers quantized by hqq, or a checkpoint that it has written."""

    def __init__(self, options: HQQOptions) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """See `smollm3_finetune.api.load_layerwise`. Also raises IncompatibleError for a layer that hqq cannot pack."""
        stored = described(source.config)
        if stored is not None:
            return load_checkpoint(source, ctx, stored)
        options = {**options_dict(self.options), "skip_modules": sorted(self.options.skip_modules)}
        searched = "float16" if torch.device(ctx.device).type == "cuda" else "float32"  # the dtype of hqq's search
        return load_layerwise(
            source,
            ctx,
            name=NAME,
            replace=lambda linear: Linear(linear, self.options, ctx.device),
            ops=ops_for_layers(Linear, Linear.dequantize, ctx.torch_dtype),
            identity=(options, version("hqq"), searched, rounding_dtype(source, ctx, seen_in="float32")),
            skip_modules=self.options.skip_modules,
            group_size=self.options.group_size,
            along="in_features" if self.options.axis == 1 else "out_features",
            check_layer=self.check_layer,
            stored=StoredLayers(
                Linear.stored, lambda linear, tensors: Linear.restored(linear, tensors, self.options, ctx.device)
            ),
        )

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """Write a quantized checkpoint of a full-precision source into `out`; see `smollm3_hqq.checkpoint`."""
        write(source, out, ctx, self.options, self.check_layer)

    def round_trip(self, source: ModelSource, ctx: BuildContext) -> HQQRoundTrip:
        """See `smollm3_finetune.api.RoundTripMaker`."""
        return HQQRoundTrip(lambda model: quantized_layers(NAME, source, model, self.options), self.options)

    def check_layer(self, name: str, layer: nn.Linear) -> None:
        """Refuse a layer that hqq accepts and whose first forward fails.

        hqq packs 8 / bits rows of its matrix of groups into one, by cutting it into as many parts of the same size.
        """
        size, rows = self.options.group_size, layer.out_features
        if size is not None:
            rows = size if self.options.axis == 0 else layer.in_features * layer.out_features // size
        together = {4: 2, 2: 4}.get(self.options.bits, 1)
        if rows % together:
            raise IncompatibleError(
                f"hqq packs {together} rows of {self.options.bits} bits into one, and {name} has {rows}",
                hint=f"--quant-opt skip_modules={name.rsplit('.', 1)[-1]}, or --quant-opt bits=8",
            )
