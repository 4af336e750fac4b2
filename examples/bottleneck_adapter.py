"""An in-house adapter in one file: a small network after chosen layers, y + up(gelu(down(y)))."""

from contextlib import contextmanager
from dataclasses import dataclass

from smollm3_finetune.api import AdapterSpec, ConfigError, ModelError, Op, Purpose, hookimpl, option

FILE = "bottleneck.safetensors"


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

        networks = {}
        for name, layer in list(base.model.named_modules()):
            if name.endswith(self.options.after):
                ops = base.ops_for(layer)  # None: an ordinary layer
                width = layer.weight.shape[0] if ops is None else ops.shape[0]
                network = nn.Sequential(
                    nn.Linear(width, self.options.size), nn.GELU(), nn.Linear(self.options.size, width)
                )
                nn.init.zeros_(network[2].weight)  # a fresh adapter adds nothing
                nn.init.zeros_(network[2].bias)
                layer.bottleneck = networks[name] = network.to(ctx.device, ctx.trained_dtype)
        if not networks:
            raise ConfigError(
                f"no layer's name ends with {' or '.join(self.options.after)}", hint="--adapter-opt after=o_proj"
            )
        return WithBottlenecks(base, networks)

    def restore(self, base, path, ctx, total_steps):
        from safetensors.torch import load_file

        adapted, saved = self.attach(base, ctx, None), load_file(str(path / FILE))
        own = adapted.parameters()
        if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in saved.items()}:
            raise ModelError(f"the bottlenecks in {path} are for other layers, or have another size")
        for name, parameter in own.items():
            parameter.data.copy_(saved[name])
            parameter.requires_grad_(ctx.purpose is Purpose.TRAIN)
        return adapted


class WithBottlenecks:
    def __init__(self, base, networks):
        self.base, self.model, self.networks, self.active = base, base.model, networks, True
        for name in networks:
            base.model.get_submodule(name).register_forward_hook(self.add)

    def add(self, layer, args, out):
        if not self.active:
            return out
        kept = layer.bottleneck[0].weight.dtype  # float32 if the run computes in half precision
        return out + layer.bottleneck(out.to(kept)).to(out.dtype)

    def parameters(self):
        return {f"{name}.{part}": p for name, n in self.networks.items() for part, p in n.named_parameters()}

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
        save_file({n: p.detach().clone() for n, p in self.parameters().items()}, str(path / FILE))
