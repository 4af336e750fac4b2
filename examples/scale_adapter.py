"""An in-house adapter in one file: a learned factor for each output of chosen layers."""

from contextlib import contextmanager
from dataclasses import dataclass

from smollm3_finetune.api import AdapterSpec, ConfigError, Op, Purpose, hookimpl, option

FILE = "scale.safetensors"


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    layers: str = option("_proj", "Scale the outputs of layers whose name ends with this.")


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

        layers = {n: m for n, m in base.model.named_modules() if n.endswith(self.options.layers)}
        if not layers:
            raise ConfigError(f"no layer's name ends with {self.options.layers!r}", hint="--adapter-opt layers=o_proj")
        for layer in layers.values():
            ops = base.ops_for(layer)  # None: an ordinary layer
            width = layer.weight.shape[0] if ops is None else ops.shape[0]
            ones = torch.ones(width, dtype=ctx.trained_dtype, device=ctx.device)
            layer.register_parameter("output_scale", torch.nn.Parameter(ones))
        return Scaled(base, layers)

    def restore(self, base, path, ctx, total_steps):
        from safetensors.torch import load_file

        adapted = self.attach(base, ctx, None)
        for name, scale in load_file(str(path / FILE)).items():
            parameter = adapted.layers[name].output_scale
            parameter.data.copy_(scale)
            parameter.requires_grad_(ctx.purpose is Purpose.TRAIN)
        return adapted


class Scaled:
    def __init__(self, base, layers):
        self.base, self.model, self.layers, self.active = base, base.model, layers, True
        for layer in layers.values():
            layer.register_forward_hook(self.scale)

    def scale(self, layer, args, out):
        return out * layer.output_scale.to(out) if self.active else out

    @contextmanager
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
        save_file({n: layer.output_scale.detach().clone() for n, layer in self.layers.items()}, str(path / FILE))
