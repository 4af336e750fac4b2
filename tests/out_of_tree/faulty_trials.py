"""Quantizers and adapters with one fault each, for tests of `smollm3 doctor --try`. `sound` and `steady` have none.

The quantizers round rows to 8 bits with `frozen_linear`. The adapters add a small matrix to each linear layer.
"""

import contextlib
from functools import cache

from smollm3_finetune.api import (
    DEQUANTIZABLE,
    AdapterSpec,
    NoOptions,
    Op,
    Purpose,
    QuantizerSpec,
    Requires,
    frozen_linear,
    hookimpl,
    load_layerwise,
    packed_reasons,
)

QUANTIZERS = {
    "sound": "none",
    "one-way": "after an evaluation, the kernel computes without gradients",
    "transposed": "read_weight() returns the transposed weight",
    "half": "read_weight() returns float16",
    "missing": "requires a library that is not installed",
    "unimportable": "needs a library that cannot be imported",
    "scaled": "the forward multiplies by 1.01 times the weight",
    "stale": "read_weight() returns other values after a training step",
    "random": "the forward adds random numbers",
    "opposite": "the gradient of the input has the wrong sign",
}
ADAPTERS = {
    "steady": "none",
    "dropping": "dropout is active in evaluation",
    "losing": "save() leaves out a tensor",
    "unscaled": "merge() forgets the scale",
    "frozen": "a parameter gets no gradient",
}
SCALE = 2.0


@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(
            name=f"{name}-rows",
            summary=f"rows of 8 bits; fault: {fault}",
            factory=f"{__name__}:{name.title().replace('-', '')}",
            provides=DEQUANTIZABLE,
            absent=packed_reasons("weights are integers"),
            requires=Requires(distributions=("acme-kernels>=2",)) if name == "missing" else Requires(),
            api=2,
        )
        for name, fault in QUANTIZERS.items()
    ]


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(
            name=f"{name}-matrix",
            summary=f"a small matrix for each layer; fault: {fault}",
            factory=f"{__name__}:{name.capitalize()}",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            packs=True,
            identity_at_start=True,
            api=2,
        )
        for name, fault in ADAPTERS.items()
    ]


# ------------------------------------------------------------------------------------------------- quantizers


@cache
def _rows():
    import torch
    from torch import nn

    class Opposite(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    class Rows(nn.Module):
        def __init__(self, linear, fault):
            super().__init__()
            self.out_features, self.in_features, self.fault = linear.out_features, linear.in_features, fault
            scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
            self.register_buffer("scale", scale)
            self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))
            self.bias, self.packed, self.steps = linear.bias, False, 0

        def dense(self):
            return self.codes.to(self.scale.dtype) * self.scale

        def forward(self, x):
            if self.fault == "one-way":
                self.packed |= not self.training and not torch.is_grad_enabled()
                if self.packed:
                    with torch.no_grad():
                        return frozen_linear(x, self.dense, self.bias)
            self.steps += self.training and torch.is_grad_enabled()
            factor = 1.01 if self.fault == "scaled" else 1.0
            x = Opposite.apply(x) if self.fault == "opposite" else x
            y = factor * frozen_linear(x, self.dense, self.bias)
            return y + 0.01 * torch.randn_like(y) if self.fault == "random" else y

    return Rows


class RowOps:
    ops, forward_rtol = DEQUANTIZABLE, 0.0

    def __init__(self, layer):
        self.layer = layer

    @property
    def shape(self):
        return self.layer.out_features, self.layer.in_features

    def read_weight(self):
        import torch

        weight = self.layer.dense().detach().clone().to(torch.promote_types(self.layer.scale.dtype, torch.float32))
        if self.layer.fault == "transposed" and weight.shape[0] == weight.shape[1]:
            return weight.T.contiguous()
        if self.layer.fault == "half":
            return weight.half()
        return weight * 1.001 if self.layer.fault == "stale" and self.layer.steps else weight


class Sound:
    fault = "none"

    def __init__(self, options: NoOptions):
        pass

    def load(self, source, ctx):
        rows = _rows()

        def ops(layer):
            return RowOps(layer) if isinstance(layer, rows) else None

        return load_layerwise(
            source, ctx, name="rows", replace=lambda linear: rows(linear, self.fault), ops=ops,
            identity=(self.fault, ctx.dtype),
        )  # fmt: skip


class OneWay(Sound):
    fault = "one-way"


class Transposed(Sound):
    fault = "transposed"


class Half(Sound):
    fault = "half"


class Missing(Sound):
    fault = "missing"


class Unimportable(Sound):
    def load(self, source, ctx):
        import acme_kernels_that_nobody_installed

        return acme_kernels_that_nobody_installed.load(source)


class Scaled(Sound):
    fault = "scaled"


class Stale(Sound):
    fault = "stale"


class Random(Sound):
    fault = "random"


class Opposite(Sound):
    fault = "opposite"


# --------------------------------------------------------------------------------------------------- adapters


class Steady:
    """y + SCALE · x Aᵀ Bᵀ, with B zero at the start."""

    fault = "none"

    def __init__(self, options: NoOptions):
        pass

    def attach(self, base, ctx, total_steps):
        import torch

        layers = {n: m for n, m in base.model.named_modules() if n.endswith("_proj")}
        generator = torch.Generator().manual_seed(ctx.seed)
        kind = {"dtype": ctx.trained_dtype, "device": ctx.device}
        for layer in layers.values():
            a = 0.1 * torch.randn(2, layer.in_features, generator=generator)
            layer.matrix_a = torch.nn.Parameter(a.to(**kind))
            layer.matrix_b = torch.nn.Parameter(torch.zeros(layer.out_features, 2, **kind))
        return Adapted(base, layers, self.fault)

    def restore(self, base, path, ctx, total_steps):
        from safetensors.torch import load_file

        adapted = self.attach(base, ctx, None)
        saved = load_file(str(path / "matrix.safetensors"))
        for name, layer in adapted.layers.items():
            for which in ("matrix_a", "matrix_b"):
                parameter = getattr(layer, which)
                if f"{name}.{which}" in saved:
                    parameter.data.copy_(saved[f"{name}.{which}"])
                parameter.requires_grad_(ctx.purpose is Purpose.TRAIN)
        return adapted

    def merge(self, dense, path):
        from safetensors.torch import load_file

        saved = load_file(str(path / "matrix.safetensors"))
        scale = 1.0 if self.fault == "unscaled" else SCALE
        for name, layer in dense.named_modules():
            if f"{name}.matrix_a" in saved:
                change = saved[f"{name}.matrix_b"].double() @ saved[f"{name}.matrix_a"].double()
                layer.weight.data += (scale * change).to(layer.weight)
        return dense


class Adapted:
    def __init__(self, base, layers, fault):
        self.base, self.model, self.layers, self.fault, self.active = base, base.model, layers, fault, True
        for layer in layers.values():
            layer.register_forward_hook(self._added)
        self.first = next(iter(layers.values()))

    def _added(self, layer, args, out):
        from torch.nn.functional import dropout

        if not self.active:
            return out
        b = layer.matrix_b.detach() if self.fault == "frozen" and layer is self.first else layer.matrix_b
        x = args[0].to(layer.matrix_a.dtype)
        if self.fault == "dropping":
            x = dropout(x, 0.1, training=True)
        return out + (SCALE * (x @ layer.matrix_a.T @ b.T)).to(out)

    @contextlib.contextmanager
    def disabled(self):
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def on_step(self, step):
        pass

    def save(self, path):
        from safetensors.torch import save_file

        path.mkdir(parents=True, exist_ok=True)
        kept = {
            f"{name}.{which}": getattr(layer, which).detach().clone()
            for name, layer in self.layers.items()
            for which in ("matrix_a", "matrix_b")
        }
        if self.fault == "losing":
            del kept[f"{list(self.layers)[3]}.matrix_b"]
        save_file(kept, str(path / "matrix.safetensors"))


class Dropping(Steady):
    fault = "dropping"


class Losing(Steady):
    fault = "losing"


class Unscaled(Steady):
    fault = "unscaled"


class Frozen(Steady):
    fault = "frozen"
