"""The shared part of all quantizer tests: the attributes of a subclass, the layers, and the points of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from smollm3_finetune.api import Base, LinearOps, ModelSource, Op, Purpose
from smollm3_finetune.components.kinds import QUANTIZER
from smollm3_finetune.components.negotiation import environment, provided
from smollm3_finetune.model.compare import input_gradient, logits
from smollm3_finetune.testing.conformance import Conformance, demand, skip
from smollm3_finetune.testing.small import small_source, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel


UNSTATED_BITS = 3


@dataclass(frozen=True)
class Layer:
    """A linear layer of the loaded model."""

    name: str
    module: Any
    view: LinearOps | None
    """The view that `ops_for` returns; None for an ordinary layer."""

    def forward_rtol(self) -> float:
        return 0.0 if self.view is None else self.view.forward_rtol


_dense_models: dict[tuple[str, str, str], PreTrainedModel] = {}
"""The last loaded model in full precision, by fingerprint, dtype and device."""


class QuantizerCase(Conformance):
    """The attributes that a subclass sets, and the helpers of the tests."""

    kind = QUANTIZER
    bits: ClassVar[int | None] = None
    """Bits per weight, 32 if weights are not rounded; None: only the accuracy of 3 bits is expected."""
    group_size: ClassVar[int | None] = None
    """Input features that share a scale; None: a whole row."""
    rounding_factor: ClassVar[float] = 2.0
    """Allowed error of a layer, as a multiple of the error of rounding its weight to nearest with these bits."""
    biases: ClassVar[bool] = True
    """Whether the small model has biases; set False for a quantizer that refuses models with biases."""
    altering: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Options that change the weights; each must also change the fingerprint."""
    writes: ClassVar[bool] = True
    """Whether to test `write`; set False if it takes minutes and other tests run it."""

    def dense_source(self, tmp_path: Path) -> ModelSource:
        """The model in full precision."""
        return small_source(biases=self.biases)

    def source(self, tmp_path: Path) -> ModelSource:
        """The source that the quantizer loads; override it if the quantizer needs a quantized checkpoint."""
        return self.dense_source(tmp_path)

    def other_source(self, tmp_path: Path) -> ModelSource | None:
        """The same architecture with other weights, whose fingerprint must differ; None skips this comparison."""
        return small_source(seed=1, biases=self.biases)

    # ------------------------------------------------------------------------------------------ helpers

    def load(self, tmp_path: Path, source: ModelSource | None = None, **options: Any) -> Base:
        base: Base = self.choose(**options).create().load(source or self.source(tmp_path), self.context(tmp_path))
        demand(isinstance(base, Base), f"load() must return a Base, but returned {type(base).__name__}")
        return base

    def dense(self, tmp_path: Path) -> PreTrainedModel:
        """The model in full precision, loaded only once. Do not modify it."""
        source = self.dense_source(tmp_path)
        key = (source.fingerprint, self.dtype, self.device)
        if key not in _dense_models:
            _dense_models.clear()
            _dense_models[key] = source.load(dtype=getattr(torch, self.dtype)).to(self.device)
        return _dense_models[key]

    def declared(self) -> frozenset[Op]:
        """The operations of layers that the descriptor declares, with these options on this device."""
        return self.provided() - {Op.ROUND_TRIP, Op.SHARDS}

    def provided(self) -> frozenset[Op]:
        """Everything that the descriptor declares, with these options on this device."""
        return provided(self.choose(), environment(self.device, Purpose.TRAIN))[0]

    def layers(self, base: Base, dense: PreTrainedModel) -> list[Layer]:
        """All linear layers of the dense model except the output head."""
        head = dense.get_output_embeddings()
        names = [n for n, m in dense.named_modules() if isinstance(m, nn.Linear) and m is not head]
        found = [Layer(n, m := base.model.get_submodule(n), base.ops_for(m)) for n in names]
        for layer in found:
            ordinary = type(layer.module) is nn.Linear
            demand(
                ordinary or layer.view is not None,
                f"{layer.name} is a {type(layer.module).__name__}, but ops_for() returns None for it, as if it were an "
                "ordinary nn.Linear: return a view with its operations",
            )
        return found

    def viewed(self, tmp_path: Path) -> tuple[Base, list[Layer]]:
        """A fresh base and its quantized layers; skips the test if all layers are ordinary."""
        base = self.load(tmp_path)
        found = [layer for layer in self.layers(base, self.dense(tmp_path)) if layer.view is not None]
        if not found:
            skip("all layers are ordinary and support every operation")
        return base, found

    def tokens(self) -> Tensor:
        return token_ids().to(self.device)

    def inputs(self, layer: Layer, rows: int = 16) -> Tensor:
        """Random inputs (rows, in)."""
        generator = torch.Generator().manual_seed(3)
        wide = torch.randn(rows, layer.module.in_features, generator=generator, dtype=torch.float64)
        return wide.to(self.device, getattr(torch, self.dtype))

    def bound(self, layer: Layer) -> float:
        return max(self.rounding, layer.forward_rtol())

    def run_sequence(self, base: Base) -> Iterator[str]:
        """Run the sequence of calls of a training run on `base`.

        Yields the name of each point of the sequence, with the model in training mode.
        """
        ids, trains = self.tokens(), Op.GRAD_INPUT in self.declared()
        base.model.train()
        yield "before any forward"
        logits(base.model, ids)
        base.model.train()
        yield "after an evaluation"
        if trains:
            input_gradient(base.model, ids)
            yield "after a training step"
            logits(base.model, ids)
            yield "after a second evaluation"
        base.model.state_dict()
        yield "after saving"
