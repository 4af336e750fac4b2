"""The gate of a run that was trained with `train.ship_as`: what a merge writes is what training computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from smollm3_finetune.api import CheckpointQuantizer, ModelSource, Purpose
from smollm3_finetune.model.load import load_base
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.shipping.gate import DifferentWeights, check_restored, check_weights, of_base, of_round_trip
from smollm3_finetune.shipping.install import install, make_round_trip, with_grids
from smollm3_finetune.shipping.record import Record
from smollm3_finetune.shipping.target import KEY, ShipPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from smollm3_finetune.api import Adapted, Base
    from smollm3_finetune.shipping.install import ShippedAdapted

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShippedMerge:
    """Compares the weights of a merge with those that training computed."""

    plan: ModelPlan
    """The plan of the merge, in the dtype that the run computed in."""
    ship: ShipPlan
    record: Record
    strict: bool = True
    """Whether a difference refuses the result: the format itself is written or loaded, and nothing is forced."""
    warnings: list[str] = field(default_factory=list)
    """What differs, where that does not refuse the result."""

    @classmethod
    def of(cls, plan: ModelPlan, *, strict: bool = True) -> ShippedMerge | None:
        """None if the adapter was not trained for a format."""
        if plan.ship is None or plan.ship.record is None:
            return None
        record = plan.ship.record
        # dequantized weights of the base may depend on the dtype that it computes in
        context = replace(plan.context, dtype=record.computed_in)
        return cls(plan=replace(plan, context=context), ship=plan.ship, record=record, strict=strict)

    def loads_format(self, dtype: str) -> bool:
        """Whether a dense merge in `dtype` is itself what is shipped: the quantizer rounds it while it is loaded."""
        writes = isinstance(self.ship.chosen.create(), CheckpointQuantizer)
        return self.ship.is_quantizer and not writes and dtype == self.record.ship_dtype

    def tolerant(self, compare: Callable[[], T]) -> T | None:
        """The result of a comparison. A difference is raised if `strict`, otherwise it becomes a warning."""
        try:
            return compare()
        except DifferentWeights as e:
            if self.strict:
                raise
            self.warnings.append(f"the weights are not compared with those of training: {e.found}")
            return None

    def install(self, base: Base, adapted: Adapted) -> ShippedAdapted:
        """Afterwards, `adapted` computes with shipped weights."""
        return install(base, adapted, self.ship, self.plan.source, self.plan.context)

    def check_restored(self, shipped: ShippedAdapted) -> None:
        """Raises DifferentWeights if the restored adapter computes other weights here than in training."""
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

    def notices(self, dtype: str, own_base: bool | None, checkpoint: tuple[str, bool] | None) -> list[str]:
        """What to know about a merge of such a run.

        Of a quantized `checkpoint`: its name, and whether it is the format of the run.
        """
        found = []
        if own_base is False:
            found.append(
                "the weights are not compared with those of training: the adapter was trained on another base, whose "
                "grids are not those of this one"
            )
        if checkpoint is not None:
            name, trained = checkpoint
            return found if trained else [*found, self.ship.notice(f"a {name} checkpoint")]
        line = self._of_dense(dtype)
        return found if line is None else [*found, line]

    def _of_dense(self, dtype: str) -> str | None:
        if dtype != self.record.ship_dtype:
            return (
                f"the run was trained with {KEY}={self.ship.name} for weights in {self.record.ship_dtype}: weights in "
                f"{dtype} are not compared with it"
            )
        if (command := self.ship.command()) == "smollm3 merge RUN":
            return None
        return f"the weights are dense; the format that the run was trained for is written by: {command}"
