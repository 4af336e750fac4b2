"""When a run ends early, and what the options that compare held-out losses need."""

from __future__ import annotations

from smollm3_finetune.config.schema import DataConfig, TrainConfig
from smollm3_finetune.data.counts import counted
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.runs.measurements import Measurements


def ends_early(train: TrainConfig, measurements: Measurements) -> bool:
    """Whether `stop_after` measurements in a row had no lower held-out loss."""
    return train.stop_after is not None and measurements.waited >= train.stop_after


def why_early(measurements: Measurements) -> str:
    """Why a run ends early, as a clause."""
    since = f" since step {measurements.best}" if measurements.best is not None else ""
    return f"no lower held-out loss in {counted(measurements.waited, 'measurement')}{since}"


def _judges(train: TrainConfig) -> str | None:
    """The option that compares held-out losses, as it was set; None if there is none."""
    if train.keep_best:
        return "train.keep_best"
    return f"train.stop_after={train.stop_after}" if train.stop_after is not None else None


def check_options(train: TrainConfig, data: DataConfig) -> None:
    """Raises ConfigError if an option that compares held-out losses cannot work, before rows are read."""
    option = _judges(train)
    if option is None:
        return
    if train.eval_every is None:
        raise ConfigError(
            f"{option} compares held-out losses during training, which needs train.eval_every",
            hint="--set train.eval_every=50",
        )
    check_judged(train, bool(data.held_out) or data.validation is not None)


def check_judged(train: TrainConfig, held_out: bool) -> None:
    """Raises ConfigError if an option compares held-out losses and there are no held-out rows."""
    option = _judges(train)
    if option is not None and not held_out:
        raise ConfigError(f"{option} needs held-out rows, but there are none", hint="--set data.held_out=0.1")


def rarely_measured(train: TrainConfig, steps: int) -> str | None:
    """Why an option that compares held-out losses has no effect in a run of `steps` steps; None if it may have one."""
    option = _judges(train)
    if option is None or train.eval_every is None or train.eval_every < steps:
        return None
    return f"{option} has no effect: train.eval_every={train.eval_every} is not below the {steps} steps of the run"
