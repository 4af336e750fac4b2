"""Quantizer `torchao-int8`: loads a full-precision model and quantizes its linear layers one by one."""

from __future__ import annotations

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ModelSource,
    layers_to_quantize,
    load_layerwise,
    ops_for_layers,
    round_trip_layers,
    rounding_dtype,
)
from smollm3_torchao.linear import Int8Linear, quantize
from smollm3_torchao.options import TorchaoInt8Options
from smollm3_torchao.round_trip import Int8RoundTrip

NAME = "torchao-int8"


class TorchaoInt8Quantizer:
    def __init__(self, options: TorchaoInt8Options) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """See `smollm3_finetune.api.load_layerwise`."""
        size, skip_modules = self.options.group_size, self.options.skip_modules
        return load_layerwise(
            source,
            ctx,
            name=NAME,
            replace=lambda linear: quantize(linear, size, ctx.device),
            ops=ops_for_layers(Int8Linear, Int8Linear.dense, ctx.torch_dtype),
            identity=(size, sorted(skip_modules), rounding_dtype(source, ctx, seen_in="float32")),
            skip_modules=skip_modules,
            group_size=size,
        )

    def round_trip(self, source: ModelSource, ctx: BuildContext) -> Int8RoundTrip:
        """See `smollm3_finetune.api.RoundTripMaker`."""
        skip_modules = self.options.skip_modules
        return Int8RoundTrip(
            lambda model: round_trip_layers(model, NAME, layers_to_quantize(model, NAME, source, skip_modules)),
            self.options.group_size,
        )
