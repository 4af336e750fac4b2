"""Adapters with faulty merges, one fault each, and one correct adapter; also quantizers that cannot be merged.

Every adapter here adds a learned matrix (`delta`) to the key projections, unless its docstring says otherwise.
"""

import dataclasses
from pathlib import Path

from smollm3_finetune.api import (
    AdaptedLayers,
    AdapterSpec,
    Base,
    NoOptions,
    Op,
    QuantizerSpec,
    hookimpl,
    layers_to_adapt,
    load_parameters,
)

ADAPTERS = {
    "delta": "DeltaAdapter",
    "delta-transposed": "TransposedAdapter",
    "delta-twice": "TwiceAdapter",
    "delta-untied": "UntiedAdapter",
    "delta-bare": "BareAdapter",
    "delta-infinite": "InfiniteAdapter",
    "delta-wrapped": "WrappedAdapter",
    "delta-nothing": "NothingAdapter",
    "delta-broken": "BrokenAdapter",
    "bias-only": "BiasAdapter",
}


@hookimpl
def smollm3_adapters():
    specs = [
        AdapterSpec(name=name, summary=name, factory=f"faulty_merges:{cls}", needs={Op.FORWARD, Op.GRAD_INPUT}, api=2)
        for name, cls in ADAPTERS.items()
    ]
    unmergeable = AdapterSpec(
        name="delta-kept",
        summary="delta",
        factory="faulty_merges:DeltaAdapter",
        refine=_kept,
        needs={Op.FORWARD},
        api=2,
    )
    return [*specs, unmergeable]


def _kept(spec, options, env):
    return dataclasses.replace(spec, merges=False)


@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(
            name="stale",
            summary="reads its weights with a scale that the forward no longer uses",
            factory="faulty_merges:StaleQuantizer",
            provides={Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT},
            api=2,
        ),
        QuantizerSpec(
            name="sealed",
            summary="weights that cannot be read",
            factory="faulty_merges:SealedQuantizer",
            provides={Op.FORWARD, Op.GRAD_INPUT},
            absent={Op.READ_WEIGHT: "its codes stay on the accelerator"},
            api=2,
        ),
    ]


class DeltaAdapter:
    layers = "k_proj"

    def __init__(self, options: NoOptions):
        pass

    def shape(self, layer):
        return (layer.out_features, layer.in_features)

    def attach(self, base, ctx, total_steps):
        import torch

        adapted = AdaptedLayers(base)
        for name, layer in layers_to_adapt(base, [self.layers]).items():
            delta = torch.nn.Parameter(torch.zeros(self.shape(layer), dtype=ctx.torch_dtype, device=ctx.device))
            adapted.add(name, "delta", delta, self.added)
        return adapted

    def added(self, delta, x, y):
        return y + (x @ delta.T if delta.dim() == 2 else delta)

    def restore(self, base, path: Path, ctx, total_steps):
        return self.attach(base, ctx, total_steps).restored(path, ctx)

    def merge(self, dense, path: Path):
        for name, delta in load_parameters(path / AdaptedLayers.FILE).items():
            self.fold(dense.get_submodule(name.removesuffix(".delta")), delta)
        return dense

    def fold(self, layer, delta):
        layer.weight.data += delta.to(layer.weight)


class TransposedAdapter(DeltaAdapter):
    """Merges the transpose. The shapes are right, because the key projections of the embedded model are square."""

    def fold(self, layer, delta):
        layer.weight.data = (layer.weight.data + delta.to(layer.weight)).T.contiguous()


class TwiceAdapter(DeltaAdapter):
    def fold(self, layer, delta):
        layer.weight.data += 2 * delta.to(layer.weight)


class UntiedAdapter(DeltaAdapter):
    def merge(self, dense, path):
        import torch

        head = dense.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach() * 1.1, requires_grad=False)
        return super().merge(dense, path)


class BareAdapter(DeltaAdapter):
    """Merges into new layers and drops the biases of the old ones."""

    def merge(self, dense, path):
        import torch

        for name, module in list(super().merge(dense, path).named_modules()):
            if name.endswith("k_proj"):
                new = torch.nn.Linear(module.in_features, module.out_features, bias=False)
                new.weight = module.weight
                dense.set_submodule(name, new)
        return dense


class InfiniteAdapter(DeltaAdapter):
    def fold(self, layer, delta):
        super().fold(layer, delta)
        layer.weight.data[0, 0] = float("inf")


class WrappedAdapter(DeltaAdapter):
    """Returns a model that still contains the adapter's own tensors."""

    def fold(self, layer, delta):
        import torch

        super().fold(layer, delta)
        layer.register_parameter("delta", torch.nn.Parameter(delta))


class NothingAdapter(DeltaAdapter):
    def merge(self, dense, path):
        return None


class BrokenAdapter(DeltaAdapter):
    def fold(self, layer, delta):
        raise ValueError("this merge is broken")


class BiasAdapter(DeltaAdapter):
    """Trains a bias for each key projection. It merges exactly in memory, but a saved SmolLM3 cannot hold it."""

    def shape(self, layer):
        return (layer.out_features,)

    def fold(self, layer, delta):
        import torch

        layer.bias = torch.nn.Parameter(delta.to(layer.weight), requires_grad=False)


def _scaled_class():
    import torch
    from torch.nn import functional as F

    class Scaled(torch.nn.Module):
        """y = x (scale · weight)ᵀ. `scale` was adjusted after `first`; the view still uses `first`."""

        def __init__(self, linear):
            super().__init__()
            self.out_features, self.in_features = linear.out_features, linear.in_features
            top = linear.weight.detach().abs().amax(1, keepdim=True)  # (out, 1)
            self.register_buffer("unit", linear.weight.detach() / top)
            self.register_buffer("first", top)
            self.register_buffer("scale", top * 1.02)

        def forward(self, x):
            return F.linear(x, self.unit * self.scale)

    return Scaled


class ScaledOps:
    ops = frozenset({Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT})
    forward_rtol = 0.0

    def __init__(self, layer):
        self.layer = layer

    @property
    def shape(self):
        return self.layer.out_features, self.layer.in_features

    def read_weight(self):
        return self.layer.unit * self.layer.first


class StaleQuantizer:
    def __init__(self, options):
        pass

    def load(self, source, ctx):
        model = source.load(dtype=ctx.torch_dtype)
        scaled = _scaled_class()
        for name, layer in list(model.named_modules()):
            if name.endswith("o_proj"):
                model.set_submodule(name, scaled(layer))
        model.requires_grad_(False)
        return Base(
            model=model.to(ctx.device),
            fingerprint=f"stale {source.fingerprint}",
            ops_for=lambda layer: ScaledOps(layer) if type(layer).__name__ == "Scaled" else None,
        )


class SealedQuantizer:
    def __init__(self, options):
        pass

    def load(self, source, ctx):
        raise AssertionError("merging must be refused before weights are read")
