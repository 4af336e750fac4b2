"""The merge check: does the merged model compute the same logits as the adapter on its base?

Logits are compared on fixed prompts, so that two merges of one adapter give the same figures. The prompts are token
ids: some of text, which is similar to later use, and some drawn from the whole vocabulary with a seeded generator,
which tests all parts of the embedding and the head and does not depend on the model's language. Each row is its own
batch, so neither padding nor an attention mask is involved.

Every figure is a relative norm, ‖found − expected‖ / ‖expected‖ over the logits of all positions:

    dense    the dense copy in float32, compared with the base: the part of the forward that `read_weight()` lacks
    merged   the merged model before it is rounded and saved, compared with the adapter on its base
    base     the dense copy rounded to the saved dtype, compared with the base
    drift    the model reloaded from disk, compared with the adapter on its base

`merged - dense` and `drift - base` are the errors of the merge itself. The first involves no rounding to the saved
dtype, so its limit is tight for every dtype; the second includes rounding, the disk and loading with transformers.
`dense` has its own limit: otherwise, subtracting it would hide a quantizer that reads other weights than it multiplies
by.
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
"""Rows of ids drawn from the whole vocabulary."""
TEXTS = (
    "A bridge is only as strong as the ground on either side of it. The engineers knew this, so they spent the first "
    "summer measuring the river bank, and not a single stone was laid before October.",
    'def mean(values: list[float]) -> float:\n    """The average; 0.0 for an empty list."""\n'
    "    return sum(values) / len(values) if values else 0.0\n\nprint(mean([1.5, 2.5, 6.0]))\n",
    "User: Which of 17, 21 and 25 is a prime number?\nAssistant: 17 is the only one: 21 = 3 · 7 and 25 = 5 · 5.\n",
)

ROUNDING: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-3, "bfloat16": 2e-2}
"""The limit of an excess, by the coarsest dtype involved. See docs/merging.md."""
COMPUTING: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}
"""The limit of `dense`, by the dtype in which the base computes."""
EXCESS_PER_RTOL = 0.2
"""Added to the limits of both excesses, as a factor of `forward_rtol`: rounded activations add noise to all figures."""
DENSE_PER_RTOL = 2.0
"""Added to the limit of `dense`, as a factor of `forward_rtol`: the error of rounded activations over all layers."""


def coarsest(*dtypes: str) -> str:
    """The dtype with the shortest mantissa."""
    return max(dtypes, key=list(ROUNDING).index)


def finest(*dtypes: str) -> str:
    """The dtype with the longest mantissa."""
    return min(dtypes, key=list(ROUNDING).index)


def fixed_rows(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[list[int]]:
    """The rows of token ids for the comparison: at most `ROW` ids below `vocabulary` each, over 200 ids in total."""
    import torch

    generator = torch.Generator().manual_seed(0)
    rows: list[list[int]] = torch.randint(0, vocabulary, (RANDOM_ROWS, ROW), generator=generator).tolist()
    for text in TEXTS:
        ids = tokenizer(text).input_ids[:ROW]
        if known := [i for i in ids if i < vocabulary]:
            rows.append(known)
    return rows


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The measured figures; see the module docstring."""

    positions: int
    moved: float
    """The adapter on its base, compared with the base alone: the size of the adapter's effect."""
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
    """The largest accepted `Figures`."""

    dense: float
    merged: float
    excess: float

    @classmethod
    def of(cls, computed: str, saved: str, forward_rtol: float, max_drift: float | None) -> Limits:
        """The limits for a base that computes in `computed`, a saved dtype, and the base's largest `forward_rtol`.

        `max_drift` replaces the default limits of both excesses.
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
    """Why the merge is refused, with the figure and its limit; None if it is accepted."""
    if not figures.dense <= limits.dense:
        return (
            f"the dense copy of the base differs from the base by {figures.dense:.2g} (limit {limits.dense:.2g}): "
            f"{quantizer} reads other weights than it multiplies by"
        )
    if not figures.merged_excess <= limits.merged:
        return (
            "before saving, the merged model differs from the adapter on its base by "
            f"{figures.merged_excess:.2g} (limit {limits.merged:.2g})"
        )
    if not figures.excess <= limits.excess:
        return (
            f"the merged model, reloaded from disk, differs from the adapter on its base by {figures.excess:.2g} "
            f"(limit {limits.excess:.2g})"
        )
    return None
