"""Trackers (W&B, TensorBoard, …) for a run's metrics, by the names of transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import ConfigError, MissingRequirementError, SmolLM3Error, did_you_mean, first_line

START = "on_train_begin"


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
                f"train.report_to={name} needs a package that is not installed", hint=f"pip install {name}"
            )


def trackers(train: TrainConfig, say: Callable[[str], None]) -> list[Any]:
    """Callbacks for the Trainer; failures during training are reported with `say`."""
    if not train.report_to:
        return []
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return [_Tracker(name, INTEGRATION_TO_CALLBACK[name], say) for name in train.report_to]


class _Tracker:
    """A tracker's callback. A failure is reported in one sentence, and ends the run only before its first step."""

    def __init__(self, name: str, callback: Callable[[], Any], say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._disabled = False
        self._callback = self._guarded(callback, START)()

    def __getattr__(self, event: str) -> Any:
        return self._guarded(getattr(self._callback, event), event)

    def _guarded(self, method: Callable[..., Any], event: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._disabled:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as e:
                if event == START:
                    raise SmolLM3Error(
                        f"train.report_to={self._name} cannot start: {type(e).__name__}: {first_line(e)}",
                        hint="log in to the tracker first, or disable it: --set train.report_to=[]",
                    ) from e
                self._disabled = True
                self._say(f"{self._name} is disabled for the rest of this run: {type(e).__name__}: {first_line(e)}")
                return None

        return call
