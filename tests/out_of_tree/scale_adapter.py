"""An out-of-tree adapter, in one file: one learned factor per output channel of chosen layers, by forward hooks."""

from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.api import (
    AdaptedLayers,
    AdapterSpec,
    Op,
    hookimpl,
    layers_to_adapt,
    load_parameters,
    option,
)


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    layers: str = option("o_proj", "Scale the outputs of layers whose name ends with this.")


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(
            name="scale",
            summary="one learned factor per output channel",
            factory="scale_adapter:ScaleAdapter",
            options="scale_adapter:ScaleOptions",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            packs=True,
            suggests={"train.learning_rate": 1e-2},
            api=2,
        )
    ]


class ScaleAdapter:
    def __init__(self, options):
        self.options = options

    def attach(self, base, ctx, total_steps):
        import torch

        adapted = AdaptedLayers(base)
        for name, layer in layers_to_adapt(base, [self.options.layers], option="layers").items():
            ones = torch.ones(layer.out_features, dtype=ctx.trained_dtype, device=ctx.device)
            adapted.add(name, "output_scale", torch.nn.Parameter(ones), lambda scale, x, y: y * scale.to(y))
        return adapted

    def restore(self, base, path: Path, ctx, total_steps):
        return self.attach(base, ctx, total_steps).restored(path, ctx)

    def merge(self, dense, path: Path):
        for name, scale in load_parameters(path / AdaptedLayers.FILE).items():
            layer = dense.get_submodule(name.removesuffix(".output_scale"))
            layer.weight.data *= scale[:, None].to(layer.weight)  # (out, in) · (out, 1)
            if layer.bias is not None:
                layer.bias.data *= scale.to(layer.bias)
        return dense
