"""An out-of-tree quantizer whose layers FSDP 2 divides among processes, or that only says so."""

from dataclasses import dataclass, replace
from typing import Literal

from smollm3_finetune.api import (
    LayerBytes,
    Op,
    QuantizerSpec,
    as_shardable,
    frozen_linear,
    hookimpl,
    load_layerwise,
    ops_for_layers,
    option,
    options_dict,
)


@dataclass(frozen=True, kw_only=True)
class DividingOptions:
    keeps: Literal["parameters", "buffers", "a-copy", "undeclared"] = option(
        "parameters", "How a layer keeps its codes."
    )


def _refine(spec, options, env):
    if options.keeps == "undeclared":
        return replace(
            spec, provides=spec.provides - {Op.SHARDS}, absent={**spec.absent, Op.SHARDS: "codes are buffers"}
        )
    return spec


def _bytes(options, shape, env):
    return LayerBytes(kept=shape[0] * shape[1] + 4 * shape[0])


@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(
            name="dividing",
            summary="rows rounded to the nearest integer, in layers that are divided among processes",
            factory="dividing_quantizer:DividingQuantizer",
            options="dividing_quantizer:DividingOptions",
            provides={Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT, Op.SHARDS},
            absent=dict.fromkeys((Op.DENSE, Op.GRAD_WEIGHT), "weights are rounded"),
            refine=_refine,
            bytes_for=_bytes,
            api=2,
        )
    ]


class DividingQuantizer:
    def __init__(self, options):
        self.options = options

    def load(self, source, ctx):
        import torch
        from torch import nn

        keeps = self.options.keeps

        class Int8Linear(nn.Module):
            def __init__(self, linear):
                super().__init__()
                self.out_features, self.in_features = linear.weight.shape
                weight = linear.weight.detach()
                scale = weight.abs().amax(1, keepdim=True) / 127  # (out, 1)
                self.register_buffer("codes", (weight / scale).round().to(torch.int8))
                self.register_buffer("scale", scale)
                self.bias = linear.bias
                if keeps in ("parameters", "a-copy"):
                    as_shardable(self, ("codes", "scale"))
                codes = self.codes
                self.dense = (lambda: codes * self.scale) if keeps == "a-copy" else lambda: self.codes * self.scale

            def forward(self, x):
                return frozen_linear(x, self.dense, self.bias)

        return load_layerwise(
            source,
            ctx,
            name="dividing",
            replace=Int8Linear,
            ops=ops_for_layers(Int8Linear, lambda layer: layer.dense(), ctx.torch_dtype),
            identity=(options_dict(self.options),),
        )
