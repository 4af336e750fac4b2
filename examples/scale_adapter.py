"""An in-house adapter in one file: a learned factor for each output of chosen layers."""

from dataclasses import dataclass

from smollm3_finetune.api import AdaptedLayers, AdapterSpec, Op, hookimpl, layers_to_adapt, option


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    layers: str = option("_proj", "Scale the outputs of linear layers whose name ends with this.")


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(
            name="scale",
            summary="a learned factor for each output",
            factory="scale_adapter:ScaleAdapter",
            options="scale_adapter:ScaleOptions",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            packs=True,
            merges=False,
            suggests={"train.learning_rate": 0.02},
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

    def restore(self, base, path, ctx, total_steps):
        return self.attach(base, ctx, total_steps).restored(path, ctx)
