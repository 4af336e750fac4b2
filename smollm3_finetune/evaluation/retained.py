"""How much of the gain of training a rounded model keeps: (base - shipped) / (base - adapter) of the held-out loss.

The share is a ratio of sums over rows, so its interval is that of `bootstrap`, with the gain of each row in the place
of its number of terms.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smollm3_finetune.evaluation.bootstrap import FEWEST, Interval, interval
from smollm3_finetune.evaluation.row_losses import RowLosses

ENOUGH = 0.8
"""Below this share, there is a warning."""


@dataclass(frozen=True, kw_only=True)
class Retained:
    """The share of the gain of training that a shipped model keeps."""

    share: float | None = None
    """None: it is not known."""
    low: float | None = None
    """The 95 % interval; None if it cannot be estimated."""
    high: float | None = None
    reason: str | None = None
    """Why the share is not known."""
    rows: int = 0
    base: float | None = None
    """The held-out loss of the base, of the adapter on it, and of the shipped model, per term."""
    adapter: float | None = None
    shipped: float | None = None
    as_shipped: bool = False
    """Whether the adapter was measured with the weights of the format that it was trained for."""

    @property
    def enough(self) -> bool:
        """False if the share is known and less than `ENOUGH`."""
        return self.share is None or self.share >= ENOUGH

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def unknown(reason: str) -> Retained:
    """A share that cannot be told, and why."""
    return Retained(reason=reason)


def retained(
    base: RowLosses, adapter: RowLosses, shipped: RowLosses, *, as_shipped: bool = False, seed: int = 0
) -> Retained:
    """The share for three models that were measured on the same rows."""
    losses = [one.loss.mean for one in (base, adapter, shipped)]
    about: dict[str, Any] = {
        "rows": len(base),
        "as_shipped": as_shipped,
        **{name: finite(loss) for name, loss in zip(("base", "adapter", "shipped"), losses, strict=True)},
    }

    def no(reason: str) -> Retained:
        return Retained(**about, reason=reason)

    if not base.loss.terms:
        return no("no token of the held-out rows could be predicted")
    for title, one in (("base", base), ("adapter", adapter), ("shipped model", shipped)):
        if not np.isfinite(one.sums).all():
            return no(f"the held-out loss of the {title} is not a finite number")
    gain = interval(base.sums - adapter.sums, base.terms, base.sources, seed=seed)
    if gain.low is None:
        return no(f"{len(base)} held-out rows are too few: at least {FEWEST} are needed")
    if gain.low <= 0:
        return no(f"training did not clearly lower the held-out loss ({_gain(gain)} from {len(base)} rows)")
    share = interval(base.sums - shipped.sums, base.sums - adapter.sums, base.sources, seed=seed)
    return Retained(**about, share=share.estimate, low=share.low, high=share.high)


def finite(value: float) -> float | None:
    """None for a value that JSON cannot represent."""
    return value if math.isfinite(value) else None


def _gain(gain: Interval) -> str:
    return f"{-gain.estimate:+.4f} ± {gain.half:.4f}".replace("-", "−")


def retained_warning(found: Retained) -> str | None:
    """What a user must know of a share that is too small; None for others."""
    if found.enough or found.share is None:
        return None
    around = "" if found.low is None else f" (95 % interval {found.low:.2f} to {found.high:.2f})"
    return f"the shipped model keeps only {found.share:.2f} of the gain of training{around}"


def ship_as_line(config: Path, name: str, options: Mapping[str, Any]) -> str:
    """The command that trains a run again, from its configuration, so that what is trained is what is shipped."""
    values = "".join(f" --ship-as-opt {shlex.quote(f'{key}={_typed(value)}')}" for key, value in options.items())
    return f"smollm3 train --config {shlex.quote(str(config))} --ship-as {name}{values}"


def _typed(value: Any) -> str:
    """An option's value as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
