"""A null adapter: the same method with random values of the same size. It shows what a change of this size does alone.

A tuned adapter that is better than its base proves little if any adapter of its size is. The null adapter is a fresh
adapter of the same method and options. Each of its trained tensors is changed:

* A tensor whose initial values are fixed, as zeros, ones or the weights of the base, gets its initial values plus
  random ones, whose norm is that of the change by training.
* A tensor whose initial values are random is drawn again and scaled to the norm of the tuned one.

A tensor that training did not change is not changed here, so a method whose trained state is zero stays the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Base, BuildContext, ModelSource, Quantizer
from smollm3_finetune.errors import IncompatibleError
from smollm3_finetune.model.load import LoadedModel, compose, parts
from smollm3_finetune.model.plan import ModelPlan

if TYPE_CHECKING:
    from torch import Tensor

ALIKE = 0.5
"""Cosine of a tuned tensor and its initial values; random values drawn again have a cosine near zero."""


class NotingQuantizer:
    """Notes which parameters a base has before the adapter is attached."""

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer
        self.parameters: list[Any] = []  # kept alive, so that their ids are not used again

    def __getattr__(self, name: str) -> Any:
        return getattr(self._quantizer, name)

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        base = self._quantizer.load(source, ctx)
        if isinstance(base, Base):
            self.parameters = list(base.model.parameters())
        return base


def composed_with_notes(plan: ModelPlan, *, check_base: bool) -> tuple[LoadedModel, dict[str, Tensor]]:
    """A tuned model, and copies of the parameters that its adapter may have changed, on the CPU.

    These are the parameters that the adapter added; if it added none, as `full`, all parameters.
    """
    quantizer, adapter = parts(plan)
    noting = NotingQuantizer(quantizer)
    loaded = compose(plan, made=(noting, adapter), check_base=check_base)
    own = {id(p) for p in noting.parameters}
    named = dict(loaded.model.named_parameters())
    added = {name: p for name, p in named.items() if id(p) not in own} or named
    return loaded, {name: p.detach().to("cpu", copy=True) for name, p in added.items()}


def null_model(plan: ModelPlan, tuned: Mapping[str, Tensor], seed: int) -> LoadedModel:
    """The base of `plan` with a null adapter, whose size is that of the `tuned` parameters.

    Raises IncompatibleError if a trained parameter of a fresh adapter is not among them, or has another shape, as with
    methods that remove parameters.
    """
    fresh = replace(plan, saved=None, context=replace(plan.context, seed=plan.context.seed + 1))
    loaded = compose(fresh, check_base=False)
    randomize({n: p for n, p in loaded.model.named_parameters() if p.requires_grad}, tuned, seed)
    return loaded


def randomize(trained: Mapping[str, Tensor], tuned: Mapping[str, Tensor], seed: int) -> None:
    """Give the parameters of a fresh adapter random values with the norms of the `tuned` ones, in place."""
    import torch

    for name, parameter in trained.items():
        if name not in tuned or tuned[name].shape != parameter.shape:
            raise IncompatibleError(f"the tuned adapter has no {name!r} of the shape {tuple(parameter.shape)}")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trained.items():
            initial, end = parameter.detach().cpu().double(), tuned[name].double()
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            size, change = float(initial.norm()), float((end - initial).norm())
            cosine = float((initial * end).sum()) / max(size * float(end.norm()), 1e-300)
            if size and change and abs(cosine) < ALIKE:  # drawn at random, from another seed
                value = initial * (float(end.norm()) / size)
            else:
                value = initial + noise * (change / max(float(noise.norm()), 1e-300))
            parameter.copy_(value.to(parameter))
