"""Tests for adapters that declare `ships`: their merged weight is what a merge writes, and has the right gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune.api import Adapted, AdapterSpec, Base, MergedLayer
from smollm3_finetune.model.compare import push
from smollm3_finetune.testing.conformance import Conformance, demand, skip

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MergedLayerTests(Conformance):
    """The tests of `AdapterConformance` for `train.ship_as`."""

    def declared(self) -> AdapterSpec:
        raise NotImplementedError

    def base(self) -> Base:
        raise NotImplementedError

    def dense(self) -> PreTrainedModel:
        raise NotImplementedError

    def create(self) -> Any:
        raise NotImplementedError

    def attach(self, tmp_path: Path, base: Base | None = None, *, pushed: bool = False) -> Adapted:
        raise NotImplementedError

    def merged_layers(self, tmp_path: Path) -> tuple[Adapted, Mapping[str, MergedLayer]]:
        """A disturbed adapter and its layers."""
        if not self.declared().ships:
            skip("ships is not declared")
        demand(self.declared().merges, "ships is declared, but merges is not")
        adapted: Any = self.attach(tmp_path, self.base(), pushed=True)
        demand(
            callable(getattr(adapted, "merged_layers", None)),
            "ships is declared, but the adapted model has no method merged_layers()",
        )
        layers: Mapping[str, MergedLayer] = adapted.merged_layers()
        demand(bool(layers), "merged_layers() returned no layer")
        return adapted, layers

    def test_a_merged_weight_is_what_a_merge_writes(self, tmp_path: Path) -> None:
        adapted, layers = self.merged_layers(tmp_path)
        adapted.save(tmp_path / "saved")
        before = self.dense()
        kept = {name: tensor.detach().clone() for name, tensor in before.state_dict().items()}
        written = self.create().merge(self.dense(), tmp_path / "saved").state_dict()
        for name, layer in layers.items():
            weight = kept.pop(f"{name}.weight", None)
            demand(weight is not None, f"merged_layers() names {name!r}, which the base does not have")
            assert weight is not None
            argument = weight.clone()
            found = layer.merged(argument).detach()
            demand(torch.equal(argument, weight), f"merged() changed the weight that it was given, for {name}")
            expected = written[f"{name}.weight"]
            demand(
                found.dtype == expected.dtype and found.shape == expected.shape,
                f"merged() returned {found.dtype} {tuple(found.shape)} for {name}, but merge() writes {expected.dtype} "
                f"{tuple(expected.shape)}",
            )
            demand(
                torch.equal(found, expected),
                f"merged() of {name} differs from the weight that merge() writes by up to "
                f"{float((found - expected).abs().max()):.2g}: use the same operations in the same order",
            )
        for name, tensor in kept.items():
            demand(
                torch.equal(written[name], tensor),
                f"merge() changes {name}, which is not among the layers of merged_layers()",
            )

    def test_a_merged_weight_has_the_gradient_of_the_adapter(self, tmp_path: Path) -> None:
        adapted, layers = self.merged_layers(tmp_path)
        dense = self.dense()
        push(adapted.model)
        for name, layer in list(layers.items())[:3]:
            weight = dense.get_submodule(name).weight.detach()
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(5, weight.shape[1], generator=generator, dtype=torch.float64).to(weight)
            pull = torch.randn(5, weight.shape[0], generator=generator, dtype=torch.float64).to(weight)
            trained = [p for p in layer.module.parameters() if p.requires_grad]
            demand(bool(trained), f"no parameter of the module of {name} requires a gradient")
            own = torch.autograd.grad((layer.module(x) * pull).sum(), trained)
            merged = layer.merged(weight)
            demand(merged.requires_grad, f"merged() of {name} is not differentiable in the parameters of its module")
            through = torch.autograd.grad((x @ merged.T * pull).sum(), trained, allow_unused=True)
            shorter: Sequence[Any] = own
            if layer.update is not None:
                shorter = torch.autograd.grad((layer.update(x) * pull).sum(), trained, allow_unused=True)
            for one, other, short in zip(own, through, shorter, strict=True):
                demand(other is not None, f"merged() of {name} does not depend on a parameter of its module")
                assert other is not None
                demand(short is not None, f"update() of {name} does not depend on a parameter of its module")
                for what, found in (("merged", other), ("update", short)):
                    error = float((one - found).norm() / one.norm().clamp_min(1e-12))
                    demand(
                        error <= max(self.rounding, 1e-5),
                        f"the gradient through {what}() of {name} differs from the adapter's own by {error:.2g}",
                    )
