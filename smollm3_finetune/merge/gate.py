"""The gate: does the merged model compute what the adapter on its base computes?

Logits are compared on fixed prompts. Fixed, so that two merges of one adapter give the same figures on any day and a
figure can be looked up again. They are token ids, partly of rendered text, which is what the model will be used on,
and partly drawn from the whole vocabulary by a seeded generator, which puts every part of the embedding and of the
head under test, and needs no knowledge of the model's language. Each row is a batch of its own, so that no padding
and no attention mask takes part.

Every figure is a relative norm, ‖found − right‖ / ‖right‖ over the logits of all positions. Four are taken:

    dense    the dense copy in float32, against the base: what `read_weight()` leaves out of the forward
    merged   the merged model before it is rounded and saved, against the adapter on its base
    base     the dense copy rounded to the number format that is saved, against the base
    drift    the model reloaded from disk, against the adapter on its base

`merged - dense` and `drift - base` are what the merge itself added. The first is exact arithmetic and so has a tight
bound whatever is saved; the second has been through rounding, the disk and transformers' loading. `dense` has a bound
of its own: subtracting it would otherwise hide a quantizer that reads other weights than it multiplies by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROW = 64
"""Longest row, in tokens."""
RANDOM_ROWS = 4
TEXTS = (
    "A bridge is only as strong as the ground on either side of it. The engineers knew this, so they spent the first "
    "summer measuring the river bank, and not a single stone was laid before October.",
    'def mean(values: list[float]) -> float:\n    """The average; 0.0 for an empty list."""\n'
    "    return sum(values) / len(values) if values else 0.0\n\nprint(mean([1.5, 2.5, 6.0]))\n",
    "User: Which of 17, 21 and 25 is a prime number?\nAssistant: 17 is the only one: 21 = 3 · 7 and 25 = 5 · 5.\n",
)

ROUNDING: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-3, "bfloat16": 2e-2}
"""The largest excess that is let through, by the coarsest number format that took part. See docs/merging.md."""
COMPUTING: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}
"""How far a dense copy in float32 may be from a base that computes in a number format."""
EXCESS_PER_RTOL = 0.2
"""More of it, for each unit of a layer's `forward_rtol`: rounded activations make figures noisy, both alike."""
DENSE_PER_RTOL = 2.0
"""How far the roundings of one layer's activations may add up over a model's layers, as a factor of `forward_rtol`."""


def coarsest(*dtypes: str) -> str:
    """Of some number formats, the one with the shortest mantissa."""
    return max(dtypes, key=list(ROUNDING).index)


def finest(*dtypes: str) -> str:
    """Of some number formats, the one with the longest mantissa."""
    return min(dtypes, key=list(ROUNDING).index)


def fixed_rows(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[list[int]]:
    """The rows of token ids to compare on, each of at most `ROW` ids below `vocabulary`; over 200 ids in total."""
    import torch

    generator = torch.Generator().manual_seed(0)
    rows: list[list[int]] = torch.randint(0, vocabulary, (RANDOM_ROWS, ROW), generator=generator).tolist()
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids[:ROW]
        if known := [i for i in ids if i < vocabulary]:
            rows.append(known)
    return rows


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; see the module's documentation."""

    positions: int
    moved: float
    """The adapter on its base against the base alone: how much there was to merge."""
    dense: float
    merged: float
    base: float
    drift: float

    @property
    def merged_excess(self) -> float:
        return max(self.merged - self.dense, 0.0) if math.isfinite(self.merged) else math.nan

    @property
    def excess(self) -> float:
        return max(self.drift - self.base, 0.0) if math.isfinite(self.drift) else math.nan


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest `Figures` that are let through."""

    dense: float
    merged: float
    excess: float

    @classmethod
    def of(cls, computed: str, saved: str, forward_rtol: float, max_drift: float | None) -> Limits:
        """For a base that computes in `computed`, a model saved in `saved`, and the base's largest `forward_rtol`.

        `max_drift` takes the place of the default bounds on what the merge added.
        """
        exact = ROUNDING[coarsest(computed, "float32")]
        noise = EXCESS_PER_RTOL * forward_rtol
        rounded = ROUNDING[coarsest(computed, saved)]
        return cls(
            dense=COMPUTING[computed] + DENSE_PER_RTOL * forward_rtol,
            merged=exact + noise if max_drift is None else max_drift,
            excess=rounded + noise if max_drift is None else max_drift,
        )


def fault(figures: Figures, limits: Limits, quantizer: str) -> str | None:
    """What is too far off, with its figure and its bound; None where the merge may be kept."""
    if not figures.dense <= limits.dense:
        return (
            f"the dense copy of the base is {figures.dense:.2g} off the base itself, at most {limits.dense:.2g}: the "
            f"weights that {quantizer} reads are not those that it multiplies by"
        )
    if not figures.merged_excess <= limits.merged:
        return (
            f"the merged model is {figures.merged_excess:.2g} off the adapter on its base before it was even saved, "
            f"at most {limits.merged:.2g}"
        )
    if not figures.excess <= limits.excess:
        return (
            f"the merged model, reloaded from disk, is {figures.excess:.2g} off the adapter on its base, at most "
            f"{limits.excess:.2g}"
        )
    return None
