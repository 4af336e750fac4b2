"""An out-of-tree adapter, in one file: one learned factor per output channel of chosen layers, by forward hooks."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.api import AdapterSpec, ConfigError, ModelError, Op, Purpose, hookimpl, option


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

        scales = {}
        for name, layer in base.model.named_modules():
            if name.endswith(self.options.layers):
                width = getattr(layer, "out_features", None) or layer.weight.shape[0]
                scale = torch.nn.Parameter(torch.ones(width, dtype=ctx.trained_dtype, device=ctx.device))
                layer.register_parameter("output_scale", scale)
                scales[name] = scale
        if not scales:
            raise ConfigError(f"no layer's name ends with {self.options.layers!r}")
        return Scaled(base, scales)

    def restore(self, base, path: Path, ctx, total_steps):
        from safetensors.torch import load_file

        adapted = self.attach(base, ctx, None)
        saved = load_file(str(path / "scale.safetensors"))
        if set(saved) != set(adapted.scales):
            raise ModelError(f"the scales in {path} are for other layers")
        for name, scale in adapted.scales.items():
            scale.data.copy_(saved[name])
            scale.requires_grad_(ctx.purpose is Purpose.TRAIN)
        return adapted

    def merge(self, dense, path: Path):
        from safetensors.torch import load_file

        for name, scale in load_file(str(path / "scale.safetensors")).items():
            layer = dense.get_submodule(name)
            layer.weight.data *= scale[:, None].to(layer.weight)  # (out, in) · (out, 1)
            if layer.bias is not None:
                layer.bias.data *= scale.to(layer.bias)
        return dense


class Scaled:
    def __init__(self, base, scales):
        self.base, self.model, self.scales = base, base.model, scales
        self.active = True
        for name, scale in scales.items():
            base.model.get_submodule(name).register_forward_hook(
                lambda module, args, out, scale=scale: out * scale.to(out) if self.active else out
            )

    @contextlib.contextmanager
    def disabled(self):
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def on_step(self, step):
        pass

    def save(self, path: Path):
        from safetensors.torch import save_file

        path.mkdir(parents=True, exist_ok=True)
        save_file({n: s.detach().clone() for n, s in self.scales.items()}, str(path / "scale.safetensors"))
        (path / "scale.json").write_text(json.dumps({"layers": len(self.scales)}))
