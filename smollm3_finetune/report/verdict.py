"""Whether a run made its model better, in words and as an interval; from `comparison` in report.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.data.shown_tokens import visible
from smollm3_finetune.evaluation.line import LEAST_ROWS, digits_of, half_of, losses_and_change, signed
from smollm3_finetune.report.scales import shown
from smollm3_finetune.report.values import count, mapping, number, text

SIGNS = {"better": "✓", "worse": "✗", "cannot tell": "≈"}
MEANING = {
    "better": "On the held-out rows, the tuned model has a lower loss than the base model.",
    "worse": "On the held-out rows, the tuned model has a higher loss than the base model.",
    "cannot tell": "The held-out rows do not show whether the tuned model is better or worse than the base model.",
}
TOO_FEW = f"There are too few held-out rows for a verdict: {LEAST_ROWS} are needed."
MOST_SOURCES = 50


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of the difference on a line, in percent of its length."""

    zero: float
    low: float
    high: float
    difference: float
    texts: tuple[str, str, str]
    """Low, difference and high, in nats."""

    @classmethod
    def of(cls, low: float, difference: float, high: float, digits: int) -> Interval:
        left, right = min(low, difference, 0.0), max(high, difference, 0.0)
        room = (right - left) * 0.2 or 1.0
        left, right = left - room, right + room

        def at(value: float) -> float:
            return round(100 * (value - left) / (right - left), 2)

        texts = (signed(low, digits), signed(difference, digits), signed(high, digits))
        return cls(at(0.0), at(low), at(high), at(difference), texts)


@dataclass(frozen=True)
class Verdict:
    word: str
    """`better`, `worse` or `cannot tell`."""
    losses: str
    """`1.885 → 1.851`"""
    change: str
    """`−0.034 ± 0.011`"""
    interval: Interval | None
    facts: Sequence[tuple[str, str]]
    """(name, value)"""
    sources: Sequence[tuple[str, Verdict]]
    """(title, verdict), if there are several sources."""
    too_few: bool = False
    """Whether the held-out rows are too few for any verdict."""
    per_token: bool = True
    """Whether the losses are per supervised token, in nats; otherwise per term, such as a pair."""

    @property
    def line(self) -> str:
        """`1.885 → 1.851 (−0.034 ± 0.011)`"""
        return f"{self.losses} ({self.change})"

    @property
    def sign(self) -> str:
        return SIGNS[self.word]

    @property
    def meaning(self) -> str:
        return TOO_FEW if self.too_few else MEANING[self.word]


def verdict_of(comparison: Any) -> Verdict | None:
    """The verdict of a comparison; None if there is none, or it is damaged."""
    about = mapping(comparison)
    word = text(about.get("verdict"))
    numbers = [number(about.get(k)) for k in ("before", "after", "difference", "low", "high")]
    before, after, difference, low, high = numbers
    if word not in SIGNS or before is None or after is None or difference is None:
        return None
    interval = None
    values: dict[str, Any] = {"before": before, "after": after, "difference": difference, "low": None, "high": None}
    if low is not None and high is not None and low <= high:
        values |= {"low": low, "high": high}
        interval = Interval.of(low, difference, high, digits_of(half_of(values)))
    losses, change = losses_and_change(values)
    too_few = word == "cannot tell" and (count(about.get("rows")) or LEAST_ROWS) < LEAST_ROWS
    facts, per_token = _facts(about, before, after), about.get("per_token") is not False
    return Verdict(word, losses, change, interval, facts, _sources(about), too_few, per_token)


def _facts(about: Mapping[str, Any], before: float, after: float) -> list[tuple[str, str]]:
    found = []
    per_token = about.get("per_token") is not False
    rows, terms = count(about.get("rows")), count(about.get("terms"))
    if rows is not None:
        found.append(("held-out rows compared", f"{rows:,}"))
    if terms is not None and per_token:
        found.append(("supervised tokens in them", f"{terms:,}"))
    if per_token:
        found.append(("perplexity", f"{_perplexity(before)} → {_perplexity(after)}"))
    if (smallest := number(about.get("smallest_difference"))) is not None:
        name = "smallest loss difference these rows can reliably show (80 % of the time)"
        unit = " nats" if per_token else ""
        found.append((name, f"{_two_digits(smallest)}{unit}"))
        if (more := count(about.get("rows_for_half"))) is not None:
            found.append((f"rows needed to show half of that, {_two_digits(smallest / 2)}{unit}", f"{more:,}"))
    if excluded := count(about.get("excluded_rows")):
        found.append(("rows left out because they are also in the training data", f"{excluded:,}"))
    return found


def _two_digits(value: float) -> str:
    return shown(float(f"{value:.2g}"))


def _perplexity(loss: float) -> str:
    return shown(math.exp(loss)) if loss < 60 else "more than 10²⁶"


def _sources(about: Mapping[str, Any]) -> list[tuple[str, Verdict]]:
    sources = list(mapping(about.get("by_source")).items())[:MOST_SOURCES]
    found = [(visible(str(title)), verdict_of(one)) for title, one in sources]
    return [(title, one) for title, one in found if one is not None] if len(found) > 1 else []
