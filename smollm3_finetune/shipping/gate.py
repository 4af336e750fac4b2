"""The gate of shipped weights: what was written, loaded again, is bit for bit what training computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ModelError
from smollm3_finetune.shipping.record import Record, digest

if TYPE_CHECKING:
    from torch import Tensor

    from smollm3_finetune.api import Base, RoundTrip
    from smollm3_finetune.shipping.record import Grids

REFUSED = "the result was refused and nothing was kept"


class DifferentWeights(ModelError):
    """Weights that differ from those of training; `found` states it without the refusal."""

    def __init__(self, found: str, *, hint: str | None = None) -> None:
        super().__init__(f"{REFUSED}: {found}", hint=hint)
        self.found = found


def check_weights(record: Record, weights: Callable[[str], Tensor], what: str, hint: str | None = None) -> int:
    """Compare the covered layers of a record with `weights(layer)`; returns their number.

    Raises DifferentWeights that names the first layer whose float32 values differ in any bit. `what` is what was
    loaded: `the checkpoint of quantizer 'hqq'`.
    """
    for layer, expected in record.digests.items():
        try:
            found = weights(layer)
        except (AttributeError, LookupError) as e:
            raise DifferentWeights(f"{what} has no layer {layer}", hint=hint) from e
        if digest(found) != expected:
            raise DifferentWeights(
                f"the weight of {layer} in {what} is not the one that training computed with", hint=hint
            )
    return len(record.digests)


def of_base(base: Base) -> Callable[[str], Tensor]:
    """The weight that a layer of a loaded model computes with, by name."""

    def weight(layer: str) -> Tensor:
        module: Any = base.model.get_submodule(layer)
        ops = base.ops_for(module)
        found: Tensor = module.weight.detach() if ops is None else ops.read_weight()
        return found

    return weight


def of_model(model: Any) -> Callable[[str], Tensor]:
    """The weights of a dense model, by the name of the layer."""

    def weight(layer: str) -> Tensor:
        found: Tensor = model.get_submodule(layer).weight.detach()
        return found

    return weight


def of_round_trip(round_trip: RoundTrip, grids: Grids, model: Any) -> Callable[[str], Tensor]:
    """The round trip of the weights of a dense model, by the name of the layer."""
    import torch

    dense = of_model(model)

    def weight(layer: str) -> Tensor:
        with torch.no_grad():
            return round_trip.apply(layer, dense(layer).to(torch.float32), grids.get(layer, {}))

    return weight


def check_restored(record: Record, digests: Mapping[str, str], device: str) -> None:
    """Compare what the restored adapter computes here with what training computed.

    A difference comes from this machine, not from what is written later: matrix products differ between devices.
    """
    if (layer := next(_different(record, digests), None)) is None:
        return
    kind = device.partition(":")[0]
    other = record.device != kind
    raise DifferentWeights(
        f"the adapter restored on {kind} computes another weight of {layer} than the run did on {record.device}",
        hint=f"use a device as in training: --device {record.device}"
        if other
        else "use the machine and the library versions of the run",
    )


def _different(record: Record, digests: Mapping[str, str]) -> Iterator[str]:
    yield from (layer for layer, expected in record.digests.items() if digests.get(layer) != expected)
