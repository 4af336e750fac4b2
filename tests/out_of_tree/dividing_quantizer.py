"""An out-of-tree quantizer whose layers FSDP 2 divides among processes, or that only says so."""

from dataclasses import dataclass, replace
from typing import Literal

from smollm3_finetune.api import (
    FrozenTensor,
    LayerBytes,
    Op,
    QuantizerSpec,
    frozen_linear,
    hookimpl,
    load_layerwise,
    ops_for_layers,
    option,
    options_dict,
)


@dataclass(frozen=True, kw_only=True)
class DividingOptions:
    keeps: Literal["parameters", "buffers", "a-copy", "changing", "undeclared"] = option(
        "parameters", "How a layer keeps its codes."
    )
    unstated: int = option(0, "Bytes of a layer that are not stated.")


def _refine(spec, options, env):
    if options.keeps == "undeclared":
        return replace(
            spec, provides=spec.provides - {Op.SHARDS}, absent={**spec.absent, Op.SHARDS: "codes are buffers"}
        )
    return spec


def _bytes(options, shape, env):
    scale = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[env.dtype]  # as the weight has
    kept = shape[0] * shape[1] + scale * shape[0] - options.unstated
    return LayerBytes(kept=kept, sharded=kept)


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
                self.hold((weight / scale).round().to(torch.int8), scale)
                self.bias = linear.bias

            def hold(self, codes, scale):
                self.register_buffer("codes", codes)
                self.register_buffer("scale", scale)

            def dense(self):
                return self.codes * self.scale

            def forward(self, x):
                return frozen_linear(x, self.dense, self.bias)

        class Frozen(Int8Linear):
            codes = FrozenTensor()
            scale = FrozenTensor()

            def hold(self, codes, scale):
                self.codes, self.scale = codes, scale

        class Copying(Frozen):
            def hold(self, codes, scale):
                super().hold(codes, scale)
                self.copy = codes.clone()

            def dense(self):
                return self.copy * self.scale

        class Changing(Frozen):
            """Repacks its codes, and takes them back the next time."""

            packed = False

            def dense(self):
                self.packed = not self.packed
                self.codes.bitwise_not_()
                return (~self.codes if self.packed else self.codes) * self.scale

        layer = {"parameters": Frozen, "a-copy": Copying, "changing": Changing}.get(keeps, Int8Linear)
        return load_layerwise(
            source,
            ctx,
            name="dividing",
            replace=layer,
            ops=ops_for_layers(layer, layer.dense, ctx.torch_dtype),
            identity=(options_dict(self.options),),
        )
