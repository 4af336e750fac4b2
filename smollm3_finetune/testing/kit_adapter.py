"""A plugin file of the kit: an adapter that can be disabled and keeps packed rows separate, for tests of objectives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smollm3_finetune.api import AdapterSpec, Base, BuildContext, NoOptions, Op, Purpose, hookimpl

FILE = "scale.safetensors"


@hookimpl
def smollm3_adapters() -> list[AdapterSpec]:
    return [
        AdapterSpec(
            name="kit-scale",
            summary="a factor for each output of a linear layer, for tests",
            factory=f"{__name__}:KitScale",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            packs=True,
            merges=False,
            api=1,
        )
    ]


class KitScale:
    def __init__(self, options: NoOptions) -> None:
        pass

    def attach(self, base: Base, ctx: BuildContext, total_steps: int | None) -> KitScaled:
        import torch

        layers = {n: m for n, m in base.model.named_modules() if n.endswith("_proj")}
        for layer in layers.values():
            ones = torch.ones(layer.weight.shape[0], dtype=ctx.trained_dtype, device=ctx.device)
            layer.register_parameter("kit_scale", torch.nn.Parameter(ones))
        return KitScaled(base, layers)

    def restore(self, base: Base, path: Path, ctx: BuildContext) -> KitScaled:
        from safetensors.torch import load_file

        adapted = self.attach(base, ctx, None)
        for name, scale in load_file(str(path / FILE)).items():
            adapted.layers[name].kit_scale.data.copy_(scale)
            adapted.layers[name].kit_scale.requires_grad_(ctx.purpose is Purpose.TRAIN)
        return adapted


class KitScaled:
    def __init__(self, base: Base, layers: dict[str, Any]) -> None:
        self.base, self.model, self.layers, self.active = base, base.model, layers, True
        for layer in layers.values():
            layer.register_forward_hook(self._scaled)

    def _scaled(self, layer: Any, args: Any, out: Any) -> Any:
        return out * layer.kit_scale.to(out) if self.active else out

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def on_step(self, step: int) -> None:
        pass

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        path.mkdir(parents=True, exist_ok=True)
        save_file({n: layer.kit_scale.detach().clone() for n, layer in self.layers.items()}, str(path / FILE))
