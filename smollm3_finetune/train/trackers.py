"""Trackers (W&B, TensorBoard, …) for a run's metrics, by the names of transformers' Trainer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import ConfigError, MissingRequirementError, did_you_mean
from smollm3_finetune.train.containment import Contained

PACKAGES = {
    "azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit flytekitplugins-deck-standard",
    "kubeflow": "kubeflow",
}  # fmt: skip
"""The packages of trackers whose name is another."""
END = "on_train_end"


def check_trackers(train: TrainConfig) -> None:
    """Raises ConfigError if a tracker is unknown, MissingRequirementError if its package is not installed."""
    if not train.report_to:
        return
    from transformers.integrations import integration_utils

    known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    installed = integration_utils.get_available_reporting_integrations()
    for name in train.report_to:
        if name not in known:
            near = did_you_mean(name, known)
            raise ConfigError(
                f"train.report_to: transformers' Trainer has no tracker {name!r}",
                hint=f"did you mean {near!r}?" if near else f"one of: {', '.join(known)}",
            )
        if name not in installed:
            raise MissingRequirementError(
                f"train.report_to={name} needs a package that is not installed",
                hint=f"pip install {PACKAGES.get(name, name)}",
            )


class Trackers:
    """The trackers of a run. A failure of one is reported in one line, and never ends the run."""

    def __init__(self, names: tuple[str, ...], tensorboard: Path, say: Callable[[str], None]) -> None:
        self._made = [_Tracker(name, tensorboard, say) for name in names]

    def add_to(self, trainer: Any) -> None:
        """Make them receive what the Trainer logs."""
        for tracker in self._made:
            trainer.add_callback(tracker)

    def end(self) -> None:
        """End their runs."""
        for tracker in self._made:
            tracker.end()


@contextlib.contextmanager
def tracking(train: TrainConfig, tensorboard: Path, say: Callable[[str], None]) -> Iterator[Trackers]:
    """The trackers of a run, which end with the context. TensorBoard writes to the directory `tensorboard`."""
    made = Trackers(train.report_to, tensorboard, say)
    try:
        yield made
    finally:
        made.end()


class _Tracker:
    """A tracker's callback of transformers, which is disabled when it fails."""

    def __init__(self, name: str, tensorboard: Path, say: Callable[[str], None]) -> None:
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        self._calls = Contained(name, say)
        self._latest: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        """The arguments of the last event; None before the first."""
        self._callback = self._calls.call(INTEGRATION_TO_CALLBACK[name])
        if getattr(self._callback, "logging_dir", "") is None:  # TensorBoard's would be among the checkpoints
            self._callback.logging_dir = os.environ.get("TENSORBOARD_LOGGING_DIR", str(tensorboard))

    def __getattr__(self, event: str) -> Callable[..., Any]:
        def call(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            self._latest = ((args, state, control), {k: v for k, v in kwargs.items() if k != "logs"})
            if event == END:  # later: the held-out loss after training is logged first
                return None
            return self._calls.call(lambda: getattr(self._callback, event)(args, state, control, **kwargs))

        return call

    def end(self) -> None:
        """End the tracker's run, also that of a tracker that failed; does nothing if it has not begun."""
        if self._latest is None or self._callback is None:
            return
        (positional, named), self._latest = self._latest, None
        self._calls.attempt(lambda: getattr(self._callback, END)(*positional, **named))
        run = getattr(getattr(self._callback, "_wandb", None), "run", None)
        if run is not None:  # transformers leaves it open, and another run of this process would continue it
            self._calls.attempt(run.finish)
