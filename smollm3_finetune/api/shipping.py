"""Protocols for training what is shipped: the grid of a quantized format, and adapters whose merge is differentiable.

With `train.ship_as`, the forward of training multiplies by `round_trip(W + ΔW)`: the weight that the written checkpoint
will have. The quantizer or exporter that is named gives the round trip, the adapter gives W + ΔW.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from smollm3_finetune.api.models import Adapted, BuildContext, ModelSource

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class RoundTrip(Protocol):
    """What a format does to dense weights: quantize, then dequantize. Made once for a run."""

    def layers(self, model: PreTrainedModel) -> Collection[str]:
        """Names of the modules of a dense `model` whose `weight` the format quantizes.

        Linear layers, and the embeddings and the head if the format quantizes them. `model` may be on the meta device.
        """
        ...

    def grid(self, layer: str, weight: Tensor) -> Mapping[str, Tensor]:
        """What stays fixed in training for this layer: scales and zero points, found for its weight in the base.

        `weight` is (out, in), float32. Empty for a format that finds its scales again from the values it writes.
        """
        ...

    def apply(self, layer: str, weight: Tensor, grid: Mapping[str, Tensor]) -> Tensor:
        """Quantize and dequantize `weight` (out, in), float32; returns a new float32 tensor on its device.

        Pure and deterministic: bit for bit what the checkpoint that is written for this weight and this grid
        dequantizes to, when the model computes in float32.
        """
        ...


@runtime_checkable
class RoundTripMaker(Protocol):
    """A quantizer that provides `Op.ROUND_TRIP`, or an exporter whose descriptor has `round_trips`."""

    def round_trip(self, source: ModelSource, ctx: BuildContext) -> RoundTrip:
        """Return the round trip of this format for models with the architecture of `source`.

        `source` is the model that is trained: of full precision, or quantized already. `ctx.calibration()` gives
        calibration rows to a quantizer that needs them.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class MergedLayer:
    """A layer that an adapter changes, and the weight that it has after the merge."""

    module: nn.Module
    """The adapted layer: core replaces its forward."""
    base: nn.Module
    """The layer of the base in it: an ordinary layer with `weight` (out, in), or one that `Base.ops_for` knows."""
    merged: Callable[[Tensor], Tensor]
    """Returns W + ΔW (out, in) for the dense weight W, in its dtype, differentiable in the adapter's parameters.

    Bit for bit what `Adapter.merge` writes for a dense model in float32.
    """
    update: Callable[[Tensor], Tensor] | None = None
    """Returns x @ ΔWᵀ (…, out) for x (…, in) without a dense ΔW, if ΔW does not depend on W; None: through `merged`.

    Used for the gradient of the parameters only, which costs a product of the size of W otherwise.
    """


class MergingAdapted(Adapted, Protocol):
    """An `Adapted` of an adapter whose descriptor has `ships`."""

    def merged_layers(self) -> Mapping[str, MergedLayer]:
        """The layers that the adapter changes, by their names in the base model.

        Everything that the adapter changes is among them: it adds nothing elsewhere.
        """
        ...


SHIPPED = "_smollm3_shipped"
"""The attribute of a module whose forward core has replaced for `train.ship_as`."""


def computes_shipped(module: nn.Module) -> bool:
    """Whether `module` now computes with the shipped weight, which includes what the adapter adds to it.

    An adapter that changes outputs by hooks asks it, so that its update is not added twice.
    """
    return bool(getattr(vars(module).get(SHIPPED), "active", False))
