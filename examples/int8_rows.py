"""An in-house quantizer in one file: rounds linear layers to 8-bit integers with one scale per row, while loading."""

from functools import cache

from smollm3_finetune.api import (
    Base,
    DequantizingOps,
    Op,
    QuantizerSpec,
    fingerprint,
    hookimpl,
    layers_to_quantize,
    refuse_quantized,
)


def check(options, source):
    refuse_quantized("int8-rows", source)


@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(
            name="int8-rows",
            summary="rows rounded to 8 bits while loading",
            factory="int8_rows:Int8Rows",
            provides={Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT},
            absent={
                Op.DENSE: "weights are stored as 8-bit integers",
                Op.GRAD_WEIGHT: "weights are stored as 8-bit integers",
            },
            check=check,
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
            return nn.functional.linear(x, self.dense(), self.bias)

    return Int8Linear


class Int8Rows:
    def __init__(self, options):
        pass

    def load(self, source, ctx):
        quantized = linear_class()
        model = source.load(dtype=ctx.torch_dtype)
        for name, layer in layers_to_quantize(model, "int8-rows", source).items():
            model.set_submodule(name, quantized(layer))
        model.requires_grad_(False)
        model.to(ctx.device)

        def ops_for(layer):
            return DequantizingOps(layer, quantized.dense, ctx.torch_dtype) if isinstance(layer, quantized) else None

        return Base(model=model, fingerprint=fingerprint("int8-rows", source.fingerprint, ctx.dtype), ops_for=ops_for)
