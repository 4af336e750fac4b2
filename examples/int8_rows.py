"""An in-house quantizer in one file: rounds linear layers to 8-bit integers with one scale per row, while loading."""

from functools import cache

from smollm3_finetune.api import (
    DEQUANTIZABLE,
    QuantizerSpec,
    check_layerwise,
    frozen_linear,
    hookimpl,
    load_layerwise,
    ops_for_layers,
    packed_reasons,
)


@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(
            name="int8-rows",
            summary="rows rounded to 8 bits while loading",
            factory="int8_rows:Int8Rows",
            provides=DEQUANTIZABLE,
            absent=packed_reasons("weights are stored as 8-bit integers"),
            check=check_layerwise("int8-rows"),
            api=2,
        )
    ]


@cache
def linear_class():
    """The layer class, defined in a function because the module with the hooks must not import torch."""
    import torch
    from torch import nn

    class Int8Linear(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            weight = linear.weight.detach()  # (out, in)
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # (out, 1)
            self.register_buffer("scale", scale)
            self.register_buffer("integers", (weight / scale).round().to(torch.int8))
            self.bias = linear.bias

        def dense(self):
            return self.integers.to(self.scale.dtype) * self.scale

        def forward(self, x):
            return frozen_linear(x, self.dense, self.bias)

    return Int8Linear


class Int8Rows:
    def __init__(self, options):
        pass

    def load(self, source, ctx):
        quantized = linear_class()
        return load_layerwise(
            source,
            ctx,
            name="int8-rows",
            replace=quantized,
            ops=ops_for_layers(quantized, quantized.dense, ctx.torch_dtype),
            identity=(ctx.dtype,),
        )
