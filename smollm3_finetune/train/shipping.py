"""Checks of a run that trains what is shipped, before weights are read."""

from __future__ import annotations

from smollm3_finetune.api import Sharding
from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import IncompatibleError, ModelError
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.shipping.target import FLAG


def check_shipping(model: ModelPlan, train: TrainConfig, sharding: Sharding, *, resumed: bool) -> None:
    """Raises IncompatibleError if a setting excludes `train.ship_as`, and ModelError if a checkpoint lacks its grids.

    A resumed run takes its grids from its checkpoint: new ones could differ.
    """
    if model.ship is None:
        return
    if train.compile:
        raise IncompatibleError(
            f"{FLAG} {model.ship.name} cannot be compiled: rounding is not part of the compiled model",
            hint="--set train.compile=false",
        )
    if sharding != "none":
        what = "FSDP" if sharding == "fsdp2" else "DeepSpeed"
        raise IncompatibleError(
            f"{FLAG} {model.ship.name} is not supported with {what}: a layer is rounded as a whole, and {what} "
            "shards its parameters",
            hint="--launcher-opt profile=ddp, or accelerate launch --multi_gpu",
        )
    if resumed and model.saved is not None and model.ship.record is None:
        raise ModelError(
            f"the checkpoint {model.saved.path} was not saved with {FLAG} {model.ship.title()}, so its grids are not "
            "known",
            hint="start a new run",
        )
