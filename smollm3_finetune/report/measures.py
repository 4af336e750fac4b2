"""The table of measures of held-out rows, such as accuracy; from `measures` in report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.data.shown_tokens import visible
from smollm3_finetune.evaluation.line import digits_of, signed
from smollm3_finetune.report.scales import shown
from smollm3_finetune.report.values import count, mapping, number

MOST = 50
"""Measures that are shown."""


@dataclass(frozen=True)
class Measure:
    """A row of the table; the interval is empty if there is none."""

    name: str
    rows: str
    before: str
    after: str
    difference: str
    interval: str
    """`+0.170 to +0.292`, of the difference."""


def measures_of(report: Mapping[str, Any]) -> list[Measure]:
    """The measures of a report; those that are damaged are left out."""
    found = [
        _measure(str(name), mapping(about)) for name, about in list(mapping(report.get("measures")).items())[:MOST]
    ]
    return [measure for measure in found if measure is not None]


def _measure(name: str, about: Mapping[str, Any]) -> Measure | None:
    rows = count(about.get("rows"))
    before, after, difference = (mapping(about.get(part)) for part in ("before", "after", "difference"))
    means = [number(part.get("mean")) for part in (before, after, difference)]
    if rows is None or None in means:
        return None
    first, last, change = (mean for mean in means if mean is not None)
    low, high = number(difference.get("low")), number(difference.get("high"))
    known = low is not None and high is not None and low <= high
    digits = digits_of((high - low) / 2) if known and low is not None and high is not None else 3
    interval = (
        f"{signed(low, digits)} to {signed(high, digits)}" if known and low is not None and high is not None else ""
    )
    title = visible(name.replace("_", " "))
    return Measure(title, f"{rows:,}", shown(first), shown(last), signed(change, digits), interval)
