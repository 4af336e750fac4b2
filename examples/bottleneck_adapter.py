"""An in-house adapter in one file: a small network after chosen layers, y + up(gelu(down(y)))."""

from dataclasses import dataclass

from smollm3_finetune.api import AdaptedLayers, AdapterSpec, Op, hookimpl, layers_to_adapt, option


@dataclass(frozen=True, kw_only=True)
class BottleneckOptions:
    size: int = option(16, "Width of the bottleneck.", ge=1)
    after: tuple[str, ...] = option(("o_proj", "down_proj"), "Endings of the names of linear layers to extend.")


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(
            name="bottleneck",
            summary="a small network after chosen layers",
            factory="bottleneck_adapter:BottleneckAdapter",
            options="bottleneck_adapter:BottleneckOptions",
            needs={Op.FORWARD, Op.GRAD_INPUT},  # works with every quantizer that passes gradients through
            packs=True,  # processes each token alone: packed rows do not influence each other
            merges=False,  # a nonlinear network cannot be folded into a weight
            suggests={"train.learning_rate": 0.003},
            api=2,
        )
    ]


class BottleneckAdapter:
    def __init__(self, options):
        self.options = options

    def attach(self, base, ctx, total_steps):
        from torch import nn  # not at the top: this file is imported whenever plugins are listed

        adapted = AdaptedLayers(base)
        for name, layer in layers_to_adapt(base, self.options.after, option="after").items():
            width, size = layer.out_features, self.options.size
            network = nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Linear(size, width))
            nn.init.zeros_(network[2].weight)  # a fresh adapter adds nothing
            nn.init.zeros_(network[2].bias)
            adapted.add(name, "bottleneck", network.to(ctx.device, ctx.trained_dtype), add)
        return adapted

    def restore(self, base, path, ctx, total_steps):
        return self.attach(base, ctx, total_steps).restored(path, ctx)


def add(network, x, y):
    kept = network[0].weight.dtype  # float32 if the run computes in half precision
    return y + network(y.to(kept)).to(y.dtype)
