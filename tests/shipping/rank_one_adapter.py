"""A plugin file for tests: an adapter outside PEFT that ships, the outer product of two vectors for each layer."""

from smollm3_finetune.api import AdaptedLayers, AdapterSpec, Op, hookimpl, layers_to_adapt, load_parameters


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(
            name="rank-one",
            summary="adds the outer product of two vectors",
            factory="rank_one_adapter:RankOneAdapter",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            packs=True,
            ships=True,
            api=2,
        )
    ]


def output(part, x, y):
    return y + ((x.to(part.down) @ part.down).unsqueeze(-1) * part.up).to(y)


def merged(part, weight):
    return (weight + part.up.unsqueeze(1) * part.down.unsqueeze(0)).to(weight.dtype)


class RankOneAdapter:
    def __init__(self, options):
        self.options = options

    def attach(self, base, ctx, total_steps):
        import torch

        adapted = AdaptedLayers(base)
        for name, layer in layers_to_adapt(base).items():
            part = torch.nn.Module()
            part.down = torch.nn.Parameter(torch.randn(layer.in_features) / layer.in_features**0.5)
            part.up = torch.nn.Parameter(torch.zeros(layer.out_features))
            adapted.add(name, "outer", part.to(ctx.device, ctx.trained_dtype), output, merged=merged)
        return adapted

    def restore(self, base, path, ctx, total_steps):
        return self.attach(base, ctx, total_steps).restored(path, ctx)

    def merge(self, dense, path):
        import torch

        tensors = load_parameters(path / AdaptedLayers.FILE)
        for name in {key.removesuffix(".outer.up") for key in tensors if key.endswith(".outer.up")}:
            part = torch.nn.Module()
            part.up, part.down = tensors[f"{name}.outer.up"], tensors[f"{name}.outer.down"]
            layer = dense.get_submodule(name)
            layer.weight.data = merged(part, layer.weight.data)
        return dense
