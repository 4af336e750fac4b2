"""A plugin file for tests: formats that round weights to a grid, with and without a checkpoint, with frozen scales."""

import json
from dataclasses import dataclass, replace

from smollm3_finetune.api import ALL_OPS, Base, Check, ExporterSpec, Op, QuantizerSpec, fingerprint, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Options of the formats."""

    bits: int = option(4, "Bits of a weight.", ge=2, le=8)
    embeddings: bool = option(False, "Round the embeddings too.")


@dataclass(frozen=True, kw_only=True)
class GridExportOptions(GridOptions):
    """Options of the exporter."""

    note: bool = option(False, "Also write a note.")


@hookimpl
def smollm3_quantizers():
    def spec(name, factory, provides=ALL_OPS | {Op.ROUND_TRIP}, **more):
        return QuantizerSpec(
            name=name,
            summary="weights rounded to a grid",
            factory=f"grid_quantizers:{factory}",
            options="grid_quantizers:GridOptions",
            provides=provides,
            claims=lambda config: method_of(config) == name,
            api=2,
            **more,
        )

    return [
        spec("grid", "Grid"),
        spec("grid-file", "GridFile"),
        spec("grid-rows", "GridRows", needs_calibration=True),
        spec("no-trip", "Grid", ALL_OPS, absent={Op.ROUND_TRIP: "its codes depend on the device"}),
    ]


@hookimpl
def smollm3_exporters():
    return [
        ExporterSpec(
            name="grid-export",
            summary="weights rounded to a grid, for other software",
            factory="grid_quantizers:GridExport",
            options="grid_quantizers:GridExportOptions",
            weightless_options=("note",),
            round_trips=True,
            refine=lambda spec, options, env: replace(spec, round_trips=options.bits < 8),
            api=2,
        )
    ]


def method_of(config):
    return (config.get("quantization_config") or {}).get("quant_method")


class Rounding:
    """The scale of a row is its largest value: found again from each weight, or frozen."""

    def __init__(self, options, frozen=False):
        self.options, self.frozen = options, frozen
        self.steps = 2 ** (options.bits - 1) - 1

    def layers(self, model):
        from torch import nn

        head = model.get_output_embeddings()
        found = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
        embeddings = [n for n, m in model.named_modules() if m is model.get_input_embeddings()]
        return [*found, *(embeddings if self.options.embeddings else [])]

    def scale(self, weight):
        return weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / self.steps

    def grid(self, layer, weight):
        return {"scale": self.scale(weight)} if self.frozen else {}

    def apply(self, layer, weight, grid):
        scale = grid["scale"] if self.frozen else self.scale(weight)
        return (weight / scale).round().clamp(-self.steps, self.steps) * scale


class Grid:
    """Rounds the weights while they are loaded, and keeps them in ordinary layers."""

    frozen = False

    def __init__(self, options):
        self.options = options

    def round_trip(self, source, ctx):
        return Rounding(self.options, self.frozen)

    def load(self, source, ctx):
        import torch

        model = source.load(dtype=torch.float32)
        self.round(model, None)
        model.to(ctx.torch_dtype).to(ctx.device).requires_grad_(False)
        return Base(model=model.eval(), fingerprint=fingerprint(source.fingerprint, "grid", self.options.bits))

    def round(self, model, grids):
        import torch

        rounding = Rounding(self.options, self.frozen)
        with torch.no_grad():
            for name in rounding.layers(model):
                weight = model.get_submodule(name).weight
                grid = rounding.grid(name, weight) if grids is None else grids.get(name, {})
                weight.copy_(rounding.apply(name, weight, grid))


class GridFile(Grid):
    """Writes the rounded weights as a checkpoint."""

    method = "grid-file"
    spoiled = None
    """A layer in which `write` changes one value, for tests."""

    def load(self, source, ctx):
        if method_of(source.config) is None:
            return super().load(source, ctx)
        from transformers import AutoConfig

        config = {k: v for k, v in source.config.items() if k != "quantization_config"}
        model = source.load(dtype=ctx.torch_dtype, config=AutoConfig.for_model(**config))
        model.to(ctx.device).requires_grad_(False)
        return Base(model=model.eval(), fingerprint=fingerprint(source.fingerprint, self.method))

    def write(self, source, out, ctx):
        import torch

        model = source.load(dtype=torch.float32)
        if self.frozen and ctx.grids is None:
            assert len(ctx.calibration()) > 0
        self.round(model, ctx.grids)
        if self.spoiled is not None:
            with torch.no_grad():
                weight = model.get_submodule(self.spoiled).weight
                weight[0, 0] += weight[0].abs().max()
        model.save_pretrained(str(out))
        config = json.loads((out / "config.json").read_text())
        config["quantization_config"] = {"quant_method": self.method, "bits": self.options.bits}
        (out / "config.json").write_text(json.dumps(config))


class GridRows(GridFile):
    """Rounds to scales that are found once; finding them takes calibration rows."""

    method, frozen = "grid-rows", True

    def round_trip(self, source, ctx):
        if ctx.grids is None:
            assert len(ctx.calibration()) > 0
        return super().round_trip(source, ctx)


class GridExport(Grid):
    """Writes the rounded weights in float32."""

    frozen = True
    spoiled = None

    def write(self, subject, out, ctx):
        import torch

        model = subject.model.load(dtype=torch.float32)
        self.round(model, ctx.grids)
        if self.spoiled is not None:
            with torch.no_grad():
                model.get_submodule(self.spoiled).weight[0, 0] += 1
        model.save_pretrained(str(out))

    def verify(self, subject, out, ctx):
        found = (out / "model.safetensors").is_file()
        return [Check(name="files", passed=found, says="the weights are written")]

    def reload(self, subject, out, ctx):
        import torch

        return subject.model.at(out).load(dtype=torch.float32)
