"""The gate of a run that was trained with `train.ship_as`: what a merge writes is what training computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import CheckpointQuantizer, ModelSource, Purpose
from smollm3_finetune.model.load import load_base
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.shipping.gate import check_restored, check_weights, of_base, of_round_trip
from smollm3_finetune.shipping.install import install, make_round_trip, with_grids
from smollm3_finetune.shipping.record import Record
from smollm3_finetune.shipping.target import KEY, ShipPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from smollm3_finetune.api import Adapted, Base


@dataclass(frozen=True, kw_only=True)
class ShippedMerge:
    """Compares the weights of a merge with those that training computed."""

    plan: ModelPlan
    """The plan of the merge, in the dtype that the run computed in."""
    ship: ShipPlan
    record: Record

    @classmethod
    def of(cls, plan: ModelPlan) -> ShippedMerge | None:
        """None if the adapter was not trained for a format."""
        if plan.ship is None or plan.ship.record is None:
            return None
        record = plan.ship.record
        # dequantized weights of the base may depend on the dtype that it computes in
        context = replace(plan.context, dtype=record.computed_in)
        return cls(plan=replace(plan, context=context), ship=plan.ship, record=record)

    def check_restored(self, base: Base, adapted: Adapted) -> None:
        """Raises ModelError if the restored adapter computes other weights here than in training.

        Afterwards, `adapted` computes with shipped weights.
        """
        shipped = install(base, adapted, self.ship, self.plan.source, self.plan.context)
        check_restored(self.record, shipped.digests(), self.plan.context.device)

    def check_merged(self, merged: PreTrainedModel, dtype: str) -> dict[str, Any] | None:
        """Compare the round trip of a merged model, reloaded from disk. Returns what the report says about it.

        None if it is not saved in the dtype that the format rounds: then there is nothing to compare.
        """
        if dtype != self.record.ship_dtype:
            return None
        made = make_round_trip(self.ship, self.plan.source, with_grids(self.ship, self.plan.context))
        assert self.ship.saved is not None
        grids = self.record.read_grids(self.ship.saved, self.plan.context.device)
        count = check_weights(
            self.record, of_round_trip(made, grids, merged), f"the merged model, rounded as {self.ship.title()},"
        )
        return self._about(count, "merged model, rounded to the format")

    def check_loaded(self, merged: ModelSource) -> dict[str, Any] | None:
        """Load the merged model with the quantizer that it was trained for, and compare; None for other formats."""
        if not self.ship.is_quantizer:
            return None
        quantizer = self.ship.chosen.create()
        if isinstance(quantizer, CheckpointQuantizer):
            return None
        context = replace(self.plan.context, purpose=Purpose.INFER, dtype="float32")
        base = load_base(self.ship.chosen, quantizer, merged, context)
        return self._about(self.check_base(base, "merged model"), "merged model, loaded with the quantizer")

    def check_base(self, base: Base, what: str) -> int:
        """Compare a model that the quantizer loaded in float32; returns the number of compared layers."""
        return check_weights(self.record, of_base(base), f"the {what}, loaded as {self.ship.title()},")

    def checkpoint(self, base: Base) -> dict[str, Any]:
        """Compare a quantized checkpoint that was loaded in float32."""
        return self._about(self.check_base(base, "quantized checkpoint"), "quantized checkpoint")

    def _about(self, count: int, compared: str) -> dict[str, Any]:
        return {"format": self.ship.name, "options": self.ship.chosen.changed_options(), "layers": count,
                "compared": compared}  # fmt: skip

    def warning(self, dtype: str) -> str | None:
        """What to know about a dense merge of such a run; None if there is nothing."""
        if dtype != self.record.ship_dtype:
            return (
                f"the run was trained with {KEY}={self.ship.name} for weights in {self.record.ship_dtype}: weights in "
                f"{dtype} are not compared with it"
            )
        if (command := self.ship.command()) == "smollm3 merge RUN":
            return None
        return f"the weights are dense; the format that the run was trained for is written by: {command}"
