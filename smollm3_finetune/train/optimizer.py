"""The optimizer that a run names: whether transformers' Trainer knows it."""

from __future__ import annotations

from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import ConfigError, did_you_mean


def check_optimizer(train: TrainConfig) -> None:
    """Raises ConfigError for a name that is none. Imports transformers only for one that is not the default."""
    if train.optimizer == TrainConfig().optimizer:
        return
    from transformers.training_args import OptimizerNames

    names = [str(o.value) for o in OptimizerNames]
    if train.optimizer not in names:
        near = did_you_mean(train.optimizer, names)
        raise ConfigError(
            f"train.optimizer: transformers' Trainer has no optimizer {train.optimizer!r}",
            hint=f"did you mean {near!r}?" if near else "train.optimizer=adamw_torch",
        )
