"""Watches a run for numbers gone bad: a loss that explodes or never changes, gradients out of all proportion."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.train.finite import STABILITY_HINT

RISE = 5.0
"""A loss that is higher than at the start by this much (in nats per token: each token 150 times less probable) and at
least twice as high has exploded."""
IN_A_ROW = 5
"""Logged losses in a row that must be that high: a single hard batch does not end a run."""
UNCHANGED = 10
"""Logged losses in a row that must be equal for a warning; different batches never give the same loss bit for bit."""
NORM_FACTOR = 1000.0
"""A gradient norm of this many times the median of the run so far is out of all proportion."""
NORM_HISTORY = 10
"""Steps before gradient norms are compared."""


def exploded(start: float, now: float) -> bool:
    """Whether a loss has exploded since the start."""
    return now > max(start + RISE, 2 * start) or not math.isfinite(now)


@dataclass
class Health:
    """What the logged values of a run say; `warn` is called with each warning, once per kind."""

    warn: Callable[[str], None]
    start: float | None = None
    """The first loss."""
    failure: str | None = None
    _high: int = 0
    _equal: int = 0
    _last: float | None = None
    _norms: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    _warned: set[str] = field(default_factory=set)

    def logged(self, row: Mapping[str, Any]) -> bool:
        """Examine a logged row; False if the run must end, without saving these weights."""
        step, loss, norm = row["step"], row["loss"], row["grad_norm"]
        if self.start is None:
            self.start = loss
        self._high = self._high + 1 if exploded(self.start, loss) else 0
        self._equal = self._equal + 1 if loss == self._last else 1
        self._last = loss
        if not math.isfinite(loss):
            self.failure = f"the loss became {loss} by step {step}"
        elif self._high >= IN_A_ROW:
            self.failure = f"the loss exploded from {self.start:.4g} to {loss:.4g} by step {step}"
        if self._equal >= UNCHANGED:
            self._warn_once(
                "loss",
                f"the loss has been {loss:.4g} for {UNCHANGED} logged steps: training has no effect on it",
            )
        if norm is not None:
            self._examine(step, norm)
        return self.failure is None

    def _examine(self, step: int, norm: float) -> None:
        if len(self._norms) >= NORM_HISTORY:
            median = statistics.median(self._norms)
            if median > 0 and norm > NORM_FACTOR * median:
                times = norm / median
                self._warn_once(
                    "norm",
                    f"the gradient norm of step {step} is {norm:.3g}, {times:,.0f} times the median of the steps before"
                    f"; if the loss rises, {STABILITY_HINT}",
                )
        self._norms.append(norm)

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self.warn(f"warning: {text}")

    def check_end(self, consequence: str) -> None:
        """Raises SmolLM3Error if the run failed."""
        if self.failure is not None:
            raise SmolLM3Error(f"{self.failure}; {consequence}", hint=STABILITY_HINT)


def compare_held_out(
    before: float | None, after: float | None, verdict: str | None, adapter: str, warn: Callable[[str], None]
) -> None:
    """Warn if the verdict is that the held-out loss rose; a rise that may be chance is not worth a warning.

    Raises SmolLM3Error if the loss exploded: the adapter is not usable.
    """
    if before is None or after is None or after <= before:
        return
    change = f"the held-out loss rose from {before:.4f} to {after:.4f}"
    if exploded(before, after):
        raise SmolLM3Error(f"{change}; the adapter in {adapter} is not usable", hint=STABILITY_HINT)
    if verdict == "worse":
        warn(f"warning: {change}: on held-out rows, the adapter is worse than the base model")


@dataclass(frozen=True)
class TrainedWeights:
    """A digest of the trained weights, to see whether a run changed any."""

    digest: str

    @classmethod
    def of(cls, model: Any) -> TrainedWeights:
        """The sums and the sums of squares of each trained parameter, in float64; of the part of this process."""
        import torch

        found = hashlib.sha256()
        with torch.no_grad():
            for name, whole in model.named_parameters():
                parameter = getattr(whole, "_local_tensor", whole)
                if whole.requires_grad:
                    values = parameter.double() if parameter.device.type != "mps" else parameter.cpu().double()
                    found.update(f"{name} {values.sum().item()!r} {values.square().sum().item()!r}\n".encode())
        return cls(found.hexdigest())
