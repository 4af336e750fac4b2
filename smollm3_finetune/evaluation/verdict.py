"""Is a change of the held-out loss more than chance? Better, worse or cannot tell, with a 95 % interval.

docs/verdict.md explains the method and gives its measured error rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, Literal

from smollm3_finetune.evaluation.bootstrap import CONFIDENCE, Interval, interval
from smollm3_finetune.evaluation.line import LEAST_ROWS, change_of
from smollm3_finetune.evaluation.row_losses import RowLosses

Verdict = Literal["better", "worse", "cannot tell"]

RESOLUTION = 1e-5
"""Nats per term; a smaller difference is not a verdict, however certain: padding and batch size change the measured
losses by as much."""
POWER = 0.8
"""The probability with which the smallest difference would be called better or worse."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The losses of two models on the same rows, in nats per term (for most objectives: per supervised token)."""

    rows: int
    terms: int
    per_token: bool = True
    """Whether terms are supervised tokens; otherwise the loss has no perplexity."""
    before: float
    after: float
    difference: float
    """`after - before`."""
    low: float | None
    """The 95 % interval of the difference; None if it cannot be estimated, as from fewer than five rows."""
    high: float | None
    verdict: Verdict
    smallest_difference: float | None
    """The smallest true difference that so many rows show with a probability of 80 %; None if they are under 30."""
    rows_for_half: int | None
    """How many such rows show half of the smallest difference."""
    excluded_rows: int = 0
    by_source: Mapping[str, Comparison] = field(default_factory=dict)
    """The same for each source, if there are several."""

    def as_json(self) -> dict[str, Any]:
        """All values; those of a source have no `by_source`."""
        found = asdict(self)
        for one in found["by_source"].values():
            del one["by_source"]
        return found

    def line(self) -> str:
        """For example `held-out loss 1.885 → 1.851 (−0.034 ± 0.011, better)`."""
        return f"held-out loss {change_of(asdict(self))}"


def compare(before: RowLosses, after: RowLosses, *, seed: int, excluded: Sequence[int] = ()) -> Comparison | None:
    """Compare two models by their losses on the same rows; None if the rows have no terms.

    `excluded` are indices of rows that are left out, such as rows that are also trained on. The same `seed` gives the
    same interval. Raises ValueError if the rows differ in number, terms or source.
    """
    if not before.has_rows_of(after):
        raise ValueError("the losses before and after are of different rows: their terms or sources differ")
    left_out = sorted(set(excluded))
    kept_before, kept_after = before.without(left_out), after.without(left_out)
    if not kept_before.loss.terms:
        return None
    parts: dict[str, Comparison] = {}
    if len(after.titles) > 1:
        for source, title in enumerate(after.titles):
            ours = kept_before.of_source(source), kept_after.of_source(source)
            if ours[0].loss.terms:
                gone = sum(int(after.sources[row]) == source for row in left_out)
                parts[title] = _compared(*ours, seed=seed, excluded=gone)
    return _compared(kept_before, kept_after, seed=seed, excluded=len(left_out), by_source=parts)


def _compared(
    before: RowLosses, after: RowLosses, *, seed: int, excluded: int, by_source: Mapping[str, Comparison] | None = None
) -> Comparison:
    found = interval(after.sums - before.sums, before.terms, before.sources, seed=seed)
    smallest = _smallest_difference(found, len(before))
    return Comparison(
        rows=len(before),
        terms=before.loss.terms,
        per_token=before.per_token and after.per_token,
        before=before.loss.mean,
        after=after.loss.mean,
        difference=found.estimate,
        low=found.low,
        high=found.high,
        verdict=_verdict(found, len(before)),
        smallest_difference=smallest,
        rows_for_half=None if smallest is None else _rows_for(smallest / 2, found.error or 0.0, len(before)),
        excluded_rows=excluded,
        by_source=by_source or {},
    )


def _verdict(found: Interval, rows: int) -> Verdict:
    if rows < LEAST_ROWS or found.low is None or found.high is None or abs(found.estimate) < RESOLUTION:
        return "cannot tell"
    if found.high < 0:
        return "better"
    return "worse" if found.low > 0 else "cannot tell"


def _smallest_difference(found: Interval, rows: int) -> float | None:
    """A larger difference is outside the interval around zero with the probability `POWER`."""
    if rows < LEAST_ROWS or found.half is None or not found.error:
        return None
    return found.half + NormalDist().inv_cdf(POWER) * found.error


def _rows_for(difference: float, error: float, rows: int) -> int:
    """The number of rows whose smallest difference is `difference`, if `rows` rows have the standard error `error`."""
    needed = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) + NormalDist().inv_cdf(POWER)
    return math.ceil(rows * (needed * error / difference) ** 2)
