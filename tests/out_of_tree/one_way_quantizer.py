"""An out-of-tree quantizer with a kernel that repacks itself, in one file.

It converts a checkpoint into one with rows rounded to 8 bits. Its layer has a one-way kernel: at the first forward in
evaluation mode without gradients it repacks itself, and from then on it silently computes without gradients.
`rows-int8` pins the layer if the purpose is training. Its twin `rows-int8-unpinned` does not.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ModelSource,
    Op,
    Purpose,
    QuantizerSpec,
    hookimpl,
    load_into,
    open_checkpoint,
    option,
    options_dict,
    write_checkpoint,
)

METHOD = "rows-int8"


@dataclass(frozen=True, kw_only=True)
class RowsOptions:
    bits: int = option(8, "Bits of a weight.", ge=2, le=8)


def _claims(config):
    return (config.get("quantization_config") or {}).get("quant_method") == METHOD


@hookimpl
def smollm3_quantizers():
    provides = {Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}
    absent = dict.fromkeys((Op.DENSE, Op.GRAD_WEIGHT), "weights are integers")
    return [
        QuantizerSpec(
            name=METHOD,
            summary="rows rounded to 2 to 8 bits, with a one-way kernel that is pinned for training",
            factory="one_way_quantizer:RowsQuantizer",
            options="one_way_quantizer:RowsOptions",
            provides=provides,
            absent=absent,
            claims=_claims,
            api=2,
        ),
        QuantizerSpec(
            name=f"{METHOD}-unpinned",
            summary="the same without the pin: wrong on purpose",
            factory="one_way_quantizer:UnpinnedQuantizer",
            options="one_way_quantizer:RowsOptions",
            provides=provides,
            absent=absent,
            api=2,
        ),
    ]


@cache
def _linear_class():
    import torch
    from torch import nn

    class OneWayLinear(nn.Module):
        """y = x (scale · integers)ᵀ + b"""

        def __init__(self, integers, scale, bias, pinned):
            super().__init__()
            self.out_features, self.in_features = integers.shape
            self.register_buffer("integers", integers)
            self.register_buffer("scale", scale)
            self.bias = bias
            self.pinned = pinned
            self.packed = None

        def dense(self):
            return self.integers.to(self.scale.dtype) * self.scale

        def forward(self, x):
            if not self.pinned and not self.training and not torch.is_grad_enabled() and self.packed is None:
                self.packed = self.dense().T.contiguous()  # permanently
            if self.packed is not None:
                with torch.no_grad():
                    y = x @ self.packed
            else:
                y = x @ self.dense().T
            return y if self.bias is None else y + self.bias

    return OneWayLinear


def exact(weight):
    """A copy in float32, or in float64 if the weight is float64."""
    return weight.detach().clone() if weight.element_size() == 8 else weight.detach().float().clone()


class RowOps:
    ops = frozenset({Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT})
    forward_rtol = 0.0

    def __init__(self, layer):
        self.layer = layer

    @property
    def shape(self):
        return self.layer.out_features, self.layer.in_features

    def read_weight(self):
        if self.layer.packed is not None:  # still readable: only the gradient reveals the repacking
            return exact(self.layer.packed.T)
        return exact(self.layer.dense())


class RowsQuantizer:
    pins = True

    def __init__(self, options):
        self.options = options

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """Write the linear layers of the blocks as integers and scales, and all other tensors unchanged."""
        import torch

        top = 2 ** (self.options.bits - 1) - 1
        stored = open_checkpoint(source)
        dense = [layer for layer in stored.layers if ".experts." not in layer and not layer.endswith(".gate")]
        weights = {f"{layer}.weight": layer for layer in dense}  # without mixtures of experts and their routers

        def tensors():
            for name, tensor in stored.items():
                tensor = tensor.to(ctx.torch_dtype)
                if layer := weights.get(name):
                    scale = tensor.abs().amax(1, keepdim=True) / top
                    yield f"{layer}.integers", (tensor / scale).round().to(torch.int8)
                    yield f"{layer}.scale", scale
                else:
                    yield name, tensor

        write_checkpoint(source, out, tensors(), ctx=ctx, quantization={"quant_method": METHOD}, dtype=ctx.dtype)

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        linear, pinned = _linear_class(), self.pins and ctx.purpose is Purpose.TRAIN
        if not _claims(source.config):
            key = {"weights": source.fingerprint, "options": options_dict(self.options), "dtype": ctx.dtype}
            source = source.at(ctx.cache.get_or_build(METHOD, key, lambda out: self.write(source, out, ctx)))

        def make(name, dense, tensors):
            scale = tensors["scale"].to(ctx.torch_dtype)
            return linear(tensors["integers"], scale, dense.bias, pinned)

        def ops(layer):
            return RowOps(layer) if isinstance(layer, linear) else None

        return load_into(source, ctx, make, name=METHOD, ops=ops)


class UnpinnedQuantizer(RowsQuantizer):
    pins = False
