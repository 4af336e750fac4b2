"""A plugin file for tests: quantizers that round weights to a grid of four bits, with and without a checkpoint."""

import json

import torch

from smollm3_finetune.api import (
    ALL_OPS,
    Base,
    Op,
    QuantizerSpec,
    fingerprint,
    hookimpl,
    linear_layers,
    option,
)
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Options of the test quantizers."""

    bits: int = option(4, "Bits of a weight.", ge=2, le=8)


@hookimpl
def smollm3_quantizers():
    provided = ALL_OPS | {Op.ROUND_TRIP}
    common = {"options": "grid_quantizers:GridOptions", "api": 2}
    return [
        QuantizerSpec(name="grid", summary="rounded while loading", factory="grid_quantizers:Grid", provides=provided,
                      **common),
        QuantizerSpec(name="grid-file", summary="rounded in a checkpoint", factory="grid_quantizers:GridFile",
                      provides=provided, claims=lambda c: _method(c) == "grid-file", **common),
        QuantizerSpec(name="grid-rows", summary="rounded to frozen scales", factory="grid_quantizers:GridRows",
                      provides=provided, claims=lambda c: _method(c) == "grid-rows", needs_calibration=True, **common),
        QuantizerSpec(name="no-trip", summary="cannot be trained for", factory="grid_quantizers:Grid",
                      provides=ALL_OPS, absent={Op.ROUND_TRIP: "its codes depend on the device"}, **common),
    ]  # fmt: skip


def _method(config):
    return (config.get("quantization_config") or {}).get("quant_method")


class Rounding:
    """The scale of a row is its largest value, found again from each weight."""

    def __init__(self, bits, frozen=False):
        self.steps, self.frozen = 2 ** (bits - 1) - 1, frozen

    def layers(self, model):
        return list(linear_layers(model)[0])

    def scale(self, weight):
        return weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / self.steps

    def grid(self, layer, weight):
        return {"scale": self.scale(weight)} if self.frozen else {}

    def apply(self, layer, weight, grid):
        scale = grid["scale"] if self.frozen else self.scale(weight)
        return (weight / scale).round().clamp(-self.steps, self.steps) * scale


class Grid:
    """Rounds the weights while they are loaded, and keeps them as ordinary layers."""

    frozen = False

    def __init__(self, options):
        self.options = options

    def round_trip(self, source, ctx):
        return Rounding(self.options.bits, self.frozen)

    def load(self, source, ctx):
        model = source.load(dtype=torch.float32)
        rounding = Rounding(self.options.bits)
        with torch.no_grad():
            for name in rounding.layers(model):
                weight = model.get_submodule(name).weight
                weight.copy_(rounding.apply(name, weight, {}))
        model.to(ctx.torch_dtype).to(ctx.device).requires_grad_(False)
        return Base(model=model.eval(), fingerprint=fingerprint(source.fingerprint, "grid", self.options.bits))


class GridFile(Grid):
    """Writes the rounded weights as a checkpoint."""

    method = "grid-file"
    spoiled: str | None = None
    """A layer whose weight `write` changes in one value, for tests of the gate."""

    def load(self, source, ctx):
        if _method(source.config) is None:
            return super().load(source, ctx)
        config = {k: v for k, v in source.config.items() if k != "quantization_config"}
        from transformers import AutoConfig

        model = source.load(dtype=ctx.torch_dtype, config=AutoConfig.for_model(**config))
        model.to(ctx.device).requires_grad_(False)
        return Base(model=model.eval(), fingerprint=fingerprint(source.fingerprint, self.method))

    def write(self, source, out, ctx):
        model = source.load(dtype=torch.float32)
        rounding = Rounding(self.options.bits, self.frozen)
        if self.frozen and ctx.grids is None:
            ctx.calibration()
        with torch.no_grad():
            for name in rounding.layers(model):
                weight = model.get_submodule(name).weight
                grid = rounding.grid(name, weight) if ctx.grids is None else ctx.grids.get(name, {})
                weight.copy_(rounding.apply(name, weight, grid))
                if name == self.spoiled:
                    weight[0, 0] += weight.abs().max()
        model.save_pretrained(str(out))
        config = json.loads((out / "config.json").read_text())
        config["quantization_config"] = {"quant_method": self.method, "bits": self.options.bits}
        (out / "config.json").write_text(json.dumps(config))


class GridRows(GridFile):
    """Rounds to scales that are found once, with calibration rows."""

    method, frozen = "grid-rows", True

    def round_trip(self, source, ctx):
        if ctx.grids is None:
            assert len(ctx.calibration()) > 0
        return super().round_trip(source, ctx)
