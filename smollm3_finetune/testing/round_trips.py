"""Tests for formats that can be trained for: a round trip is what the written checkpoint dequantizes to.

`QuantizerConformance` runs them for quantizers that provide `Op.ROUND_TRIP`, and `ExporterConformance` for exporters
with `round_trips`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from smollm3_finetune.api import BuildContext, ModelSource, Purpose, RoundTrip
from smollm3_finetune.testing.conformance import Conformance, demand, skip

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOISE = 0.02
"""How far training moves a weight in these tests, relative to its standard deviation."""
METHODS = ("layers", "grid", "apply")
Written = Callable[[str], Tensor]
"""The weight that the written model computes with, by the name of the layer."""


class RoundTripTests(Conformance):
    """The tests of a round trip; the subclass says whether there is one, and how its format is written and read."""

    def has_round_trip(self) -> bool:
        """Whether the descriptor declares one, with these options on this device."""
        raise NotImplementedError

    def trained_source(self, tmp_path: Path) -> ModelSource:
        """The model in full precision whose weights are trained."""
        raise NotImplementedError

    def written_weights(self, source: ModelSource, tmp_path: Path, context: BuildContext) -> Written:
        """Write `source` in the format and read it back in float32; `context.grids` are those of training."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------ helpers

    def float_context(self, tmp_path: Path, purpose: Purpose = Purpose.TRAIN) -> BuildContext:
        return replace(self.context(tmp_path, purpose), dtype="float32")

    def round_trip(self, tmp_path: Path, source: ModelSource) -> RoundTrip:
        if not self.has_round_trip():
            skip("no round trip is declared")
        maker = self.choose().create()
        demand(
            callable(getattr(maker, "round_trip", None)),
            "a round trip is declared, but the object of the factory has no method round_trip(source, ctx)",
        )
        made: RoundTrip = maker.round_trip(source, self.float_context(tmp_path))
        missing = [name for name in METHODS if not callable(getattr(made, name, None))]
        demand(not missing, f"round_trip() returned a {type(made).__name__} without {', '.join(missing)}")
        return made

    def moved(self, source: ModelSource, directory: Path) -> ModelSource:
        """The model of `source` with other weights, as after training, in `directory`."""
        import shutil

        shutil.copytree(source.path, directory)
        generator = torch.Generator().manual_seed(0)
        for file in directory.glob("*.safetensors"):
            tensors = load_file(str(file))
            for name, tensor in tensors.items():
                if tensor.ndim == 2:
                    noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
                    tensors[name] = tensor + NOISE * tensor.std() * noise
            save_file(tensors, str(file), metadata={"format": "pt"})
        return source.at(directory)

    def full_precision(self, source: ModelSource) -> PreTrainedModel:
        model: PreTrainedModel = source.load(dtype=torch.float32).to(self.device)
        return model

    def grids(self, made: RoundTrip, model: PreTrainedModel) -> dict[str, Mapping[str, Tensor]]:
        found: dict[str, Mapping[str, Tensor]] = {}
        with torch.no_grad():
            for name in made.layers(model):
                found[name] = made.grid(name, model.get_submodule(name).weight.detach().clone())
        return found

    # ------------------------------------------------------------------------------------------ tests

    def test_a_round_trip_names_layers_with_a_weight(self, tmp_path: Path) -> None:
        source = self.trained_source(tmp_path)
        made = self.round_trip(tmp_path, source)
        model = self.full_precision(source)
        names = list(made.layers(model))
        demand(bool(names), "layers() of the round trip returned no layer of the small model")
        for name in names:
            weight: Any = getattr(model.get_submodule(name), "weight", None)
            demand(weight is not None and weight.ndim == 2, f"layers() named {name!r}, which has no weight (out, in)")
        twin = type(model)(model.config).to("meta")
        demand(
            sorted(made.layers(twin)) == sorted(names),
            "layers() of the round trip returns other names for the same model on the meta device",
        )

    def test_a_round_trip_is_pure_and_deterministic(self, tmp_path: Path) -> None:
        source = self.trained_source(tmp_path)
        made = self.round_trip(tmp_path, source)
        model = self.full_precision(source)
        grids = self.grids(made, model)
        for name, grid in grids.items():
            demand(
                isinstance(grid, Mapping) and all(isinstance(v, Tensor) and "/" not in k for k, v in grid.items()),
                f"grid() of the round trip must return tensors by name (without '/'), for {name}",
            )
            again = made.grid(name, model.get_submodule(name).weight.detach().clone())
            demand(
                grid.keys() == again.keys() and all(torch.equal(grid[k], again[k]) for k in grid),
                f"grid() of the round trip was called twice with the weight of {name}, and returned two grids",
            )
            weight = model.get_submodule(name).weight.detach().clone()
            for given in (weight, weight + 0.3 * weight.std()):  # also far from the grid's own weight
                kept, scales = given.clone(), {k: v.clone() for k, v in grid.items()}
                with torch.no_grad():
                    first, second = made.apply(name, given, grid), made.apply(name, given, grid)
                demand(
                    first.dtype == torch.float32 and first.shape == given.shape,
                    f"apply() must return float32 of the shape of the weight, for {name}: it returned {first.dtype} "
                    f"{tuple(first.shape)}",
                )
                demand(torch.equal(first, second), f"apply() was called twice for {name}, and returned two results")
                demand(
                    torch.equal(given, kept) and all(torch.equal(grid[k], v) for k, v in scales.items()),
                    f"apply() changed its arguments for {name}",
                )
                demand(first.data_ptr() != given.data_ptr(), f"apply() must return a new tensor, for {name}")
                demand(bool(first.isfinite().all()), f"apply() returned values that are not finite, for {name}")

    def test_a_round_trip_is_what_the_written_model_computes_with(self, tmp_path: Path) -> None:
        source = self.trained_source(tmp_path)
        made = self.round_trip(tmp_path, source)
        grids = self.grids(made, self.full_precision(source))
        moved = self.moved(source, tmp_path / "moved")
        context = replace(self.float_context(tmp_path), grids={name: grid for name, grid in grids.items() if grid})
        dense = self.full_precision(moved)
        written = self.written_weights(moved, tmp_path, context)
        for name, grid in grids.items():
            with torch.no_grad():
                expected = made.apply(name, dense.get_submodule(name).weight.detach().clone(), grid)
            found = written(name).to(expected.device, torch.float32)
            if not torch.equal(found, expected):
                different = int((found != expected).sum())
                apart = float((found - expected).abs().max())
                demand(
                    False,
                    f"{different} of {expected.numel()} weights of {name} in the written model differ from apply() of "
                    f"the round trip, by at most {apart:.2g}",
                )
