"""The 95 % interval of a ratio of sums over rows, by the symmetric studentized bootstrap.

The ratio is the change of the summed loss over the number of terms, so that long rows weigh as in the loss itself.
The standard error comes from the linearized ratio (Cochran, Sampling Techniques, 1977, section 6.3). The multiple of
it comes from resampling: the 95 % quantile of |difference / standard error| over resamples of the rows (Hall, Annals
of Statistics 16(3), 1988), which is larger than that of the normal distribution if rows are few or their losses have
heavy tails; it is never taken smaller than Student's. Rows are resampled inside their source, because the sources of
a run are fixed and not a sample of sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

CONFIDENCE = 0.95
RESAMPLES = 3999
UNITS = 500
"""At most this many units are resampled; more rows are put together in random groups of equal size."""
DRAWS_AT_ONCE = 2**15
"""Indices that are drawn together: few enough for the processor's cache."""
LEAST_IN_STRATUM = 10
"""Sources with fewer rows are resampled together with others: few rows say little about the spread of their source."""

FEWEST = 5
"""Fewer rows have no interval: of three rows, one resample of nine is one row thrice, whose spread is zero."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its standard error and half of its 95 % interval; None if the rows are too few."""

    estimate: float
    error: float | None
    half: float | None

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.estimate - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.estimate + self.half


def interval(changes: Floats, terms: Ints | Floats, sources: Ints, *, seed: int) -> Interval:
    """The interval of `sum(changes) / sum(terms)`. changes, terms and sources (R,), for R rows.

    The sum of `terms` must be positive; single ones may be negative, if they are gains and not numbers of terms.
    """
    total = float(terms.sum())
    estimate = float(changes.sum()) / total
    weights = terms.astype(np.float64)
    rest = changes - estimate * weights  # sums to zero
    strata = _strata(sources)
    if min(map(len, strata)) < 2:
        return Interval(estimate, None, None)
    error = float(np.sqrt(sum(_spread(rest[rows]) for rows in strata))) / total
    if error <= np.finfo(np.float64).eps * float(np.abs(changes).sum()) / total:  # equal changes, up to rounding
        return Interval(estimate, 0.0, 0.0)
    if len(rest) < FEWEST:
        return Interval(estimate, error, None)
    multiple = _multiple(rest, weights, strata, np.random.default_rng(seed))
    multiple = max(multiple, _student(len(rest) - len(strata)))
    return Interval(estimate, error, multiple * error if np.isfinite(multiple) else None)


def _strata(sources: Ints) -> list[Ints]:
    """The rows of each source; sources with few rows are merged with the next larger one."""
    _, places, counts = np.unique(sources, return_inverse=True, return_counts=True)
    by_source = np.split(np.argsort(places, kind="stable"), np.cumsum(counts)[:-1])
    by_size = sorted(by_source, key=len)
    while len(by_size) > 1 and len(by_size[0]) < LEAST_IN_STRATUM:
        merged = np.concatenate(by_size[:2])
        by_size = sorted([merged, *by_size[2:]], key=len)
    return by_size


def _spread(rest: Floats) -> float:
    """The variance of the sum of the rows of a stratum."""
    return len(rest) / (len(rest) - 1) * float(np.square(rest - rest.mean()).sum())


def _student(freedom: int) -> float:
    """The 95 % quantile of |t|. Source: Abramowitz and Stegun, 26.7.5; within 0.01 from 5 degrees of freedom."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _multiple(rest: Floats, weights: Floats, strata: list[Ints], random: np.random.Generator) -> float:
    """The 95 % quantile of |change / standard error| over resamples."""
    change, total, parts = np.zeros(RESAMPLES), np.zeros(RESAMPLES), []
    for rows in strata:
        most = max(2 * LEAST_IN_STRATUM, round(UNITS * len(rows) / len(rest)))
        e, n = _grouped(rest[rows], weights[rows], most, random)
        sums = _resampled_sums(np.stack([e, n, e * e, e * n, n * n], axis=1), random)  # (B, 5)
        parts.append((len(e), sums))
        change += sums[:, 0]
        total += sums[:, 1]
    change /= total  # (B,): of the resampled ratio
    variance = np.zeros(RESAMPLES)
    for units, sums in parts:
        squares = sums[:, 2] - 2 * change * sums[:, 3] + change**2 * sums[:, 4]
        squares -= (sums[:, 0] - change * sums[:, 1]) ** 2 / units
        variance += units / (units - 1) * np.maximum(squares, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(change) * total / np.sqrt(variance)
    place = round(CONFIDENCE * (RESAMPLES + 1)) - 1
    return float(np.partition(np.nan_to_num(ratios, nan=0.0, posinf=np.inf), place)[place])


def _grouped(rest: Floats, weights: Floats, most: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """The sums over random groups of rows whose sizes differ by at most one, if there are more than `most` rows."""
    if len(rest) <= most:
        return rest, weights
    group = random.permutation(len(rest)) % most
    rest, weights = (np.bincount(group, values, most).astype(np.float64) for values in (rest, weights))
    return rest, weights


def _resampled_sums(values: Floats, random: np.random.Generator) -> Floats:
    """The sums of values (U, 5) over each resample of the units: (B, 5)."""
    units = len(values)
    at_once = min(RESAMPLES, max(1, DRAWS_AT_ONCE // units))
    first = np.arange(0, at_once * units, units, dtype=np.int32)[:, None]
    parts = []
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        drawn = random.integers(0, units, (size, units), dtype=np.int32) + first[:size]
        times = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)  # how often each was drawn
        parts.append(times.astype(np.float64) @ values)
    return np.concatenate(parts)
