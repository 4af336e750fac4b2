"""An in-house quantizer in one file: linear layers as 8-bit integers with one scale a row, made while loading."""

from functools import cache

from smollm3_finetune.api import Base, Op, QuantizerSpec, fingerprint, hookimpl

OPS = frozenset({Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT})


@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(
            name="int8-rows",
            summary="rows rounded to 8 bits while loading",
            factory="int8_rows:Int8Rows",
            provides=OPS,
            absent={
                Op.DENSE: "weights are stored as 8-bit integers",
                Op.GRAD_WEIGHT: "weights are stored as 8-bit integers",
            },
        )
    ]


@cache
def linear_class():
    """Made when a model is loaded, because the module that holds the hooks must not import torch."""
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


class RowOps:
    """What can be done with one quantised layer."""

    ops = OPS
    forward_rtol = 0.0

    def __init__(self, layer):
        self.layer = layer

    @property
    def shape(self):
        return self.layer.out_features, self.layer.in_features

    def read_weight(self):
        weight = self.layer.dense()  # new at each call
        return weight if weight.element_size() >= 4 else weight.float()


class Int8Rows:
    def __init__(self, options):
        pass

    def load(self, source, ctx):
        from torch import nn

        model = source.load(dtype=ctx.torch_dtype)
        head = model.get_output_embeddings()
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and layer is not head:
                model.set_submodule(name, linear_class()(layer))
        model.requires_grad_(False)
        model.to(ctx.device)
        return Base(
            model=model,
            fingerprint=fingerprint("int8-rows", source.fingerprint, ctx.dtype),
            ops_for=lambda layer: RowOps(layer) if isinstance(layer, linear_class()) else None,
        )
