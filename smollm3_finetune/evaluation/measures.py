"""Means of the measures of held-out rows before and after, and their paired difference, with 95 % intervals.

The intervals are those of the verdict (see bootstrap.py), with one term for each row. A measure has no verdict: whether
a larger value is better depends on its meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from smollm3_finetune.evaluation.bootstrap import interval
from smollm3_finetune.evaluation.row_losses import Floats, Ints, RowLosses


@dataclass(frozen=True)
class Mean:
    """A mean over rows and its 95 % interval; None if the rows are too few for one, or all have the same value."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class MeasureChange:
    """A measure of two models on the same rows, or of one model."""

    rows: int
    """Rows that have the measure."""
    after: Mean
    before: Mean | None = None
    """None: there is no other model."""
    difference: Mean | None = None
    """Of `after - before`, row by row."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_measures(
    before: RowLosses | None, after: RowLosses, *, seed: int, excluded: Sequence[int] = ()
) -> dict[str, MeasureChange]:
    """Each measure of `after`, compared with that of `before` on the same rows. Measures that no row has are left out.

    `excluded` are indices of rows that are left out. Raises ValueError if the rows differ.
    """
    if before is not None and not before.has_rows_of(after):
        raise ValueError("the measures before and after are of different rows: their terms or sources differ")
    left_out = sorted(set(excluded))
    now, then = after.without(left_out), None if before is None else before.without(left_out)
    found: dict[str, MeasureChange] = {}
    for name, values in now.measures.items():
        has = ~np.isnan(values)
        earlier = None if then is None else then.measures.get(name)
        if earlier is not None:
            has &= ~np.isnan(earlier)
        if not has.any():
            continue
        own, sources = values[has], now.sources[has]
        if earlier is None:
            found[name] = MeasureChange(rows=len(own), after=_mean(own, sources, seed))
            continue
        found[name] = MeasureChange(
            rows=len(own),
            before=_mean(earlier[has], sources, seed),
            after=_mean(own, sources, seed),
            difference=_mean(own - earlier[has], sources, seed),
        )
    return found


def _mean(values: Floats, sources: Ints, seed: int) -> Mean:
    """The mean with its interval; without one if all rows have the same value, of which resampling says nothing."""
    found = interval(values, np.ones(len(values), dtype=np.int64), sources, seed=seed)
    return Mean(found.estimate, found.low, found.high) if found.half else Mean(found.estimate, None, None)
