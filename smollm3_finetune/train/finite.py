"""Checks for losses and weights that became infinite or nan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.train.distributed.processes import from_main, is_main_process

STABILITY_HINT = "use a lower --learning-rate, or --dtype float32"


def finite(value: Any) -> bool:
    """Whether JSON can represent the value: not an infinite or nan float."""
    return not isinstance(value, float) or math.isfinite(value)


def plain_number(value: Any) -> Any:
    """A number of PyTorch or NumPy with no dimensions as Python's number; any other value unchanged."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def check_losses(losses: Sequence[float], step: int, consequence: str) -> None:
    """Raises SmolLM3Error if the last loss is infinite or nan."""
    if losses and not math.isfinite(losses[-1]):
        raise SmolLM3Error(f"the loss became {losses[-1]} by step {step}; {consequence}", hint=STABILITY_HINT)


def check_weights(loaded: LoadedModel, step: int, consequence: str) -> None:
    """Raises SmolLM3Error if a trained weight is infinite or nan; every process must call this.

    The main process examines the weights, which must be whole there.
    """
    name = from_main(_not_finite(loaded) if is_main_process() else None)
    if name is not None:
        raise SmolLM3Error(
            f"the trained weights became infinite or nan by step {step} ({name}); {consequence}",
            hint=STABILITY_HINT,
        )


def _not_finite(loaded: LoadedModel) -> str | None:
    """The first trained weight that is infinite or nan."""
    trained = ((name, p) for name, p in loaded.model.named_parameters() if p.requires_grad)
    return next((str(name) for name, p in trained if not bool(p.isfinite().all())), None)
