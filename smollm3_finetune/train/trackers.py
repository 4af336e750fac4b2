"""Trackers (W&B, TensorBoard, …) that get a run's metrics: those that transformers' Trainer knows, by its names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import ConfigError, MissingRequirementError, SmolLM3Error, did_you_mean, first_line

START = "on_train_begin"


def check_trackers(train: TrainConfig) -> None:
    """Raises ConfigError for a name that is none, MissingRequirementError for one whose package is not here."""
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
    """Callbacks for the Trainer; what goes wrong in training is said."""
    if not train.report_to:
        return []
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return [_Tracker(name, INTEGRATION_TO_CALLBACK[name], say) for name in train.report_to]


class _Tracker:
    """A tracker's callback, whose failures are told in a sentence; once training began they do not end it."""

    def __init__(self, name: str, callback: Callable[[], Any], say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._lost = False
        self._callback = self._guarded(callback, START)()

    def __getattr__(self, event: str) -> Any:
        return self._guarded(getattr(self._callback, event), event)

    def _guarded(self, method: Callable[..., Any], event: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._lost:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as e:
                if event == START:
                    raise SmolLM3Error(
                        f"train.report_to={self._name} cannot start: {type(e).__name__}: {first_line(e)}",
                        hint="log in to it first, or --set train.report_to=[]",
                    ) from e
                self._lost = True
                self._say(f"{self._name} gets nothing more of this run: {type(e).__name__}: {first_line(e)}")
                return None

        return call
