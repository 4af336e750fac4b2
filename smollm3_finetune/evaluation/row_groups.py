"""Rows with several examples, such as the chunks of a long text: their losses are summed, their measures averaged.

A verdict counts rows as independent, which the examples of one row are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.evaluation.row_measures import averaged_measures


def by_row(found: RowLosses, examples: Sequence[int]) -> RowLosses:
    """The losses of the rows of one source, from those of their examples; `examples` are their numbers, row by row."""
    rows = len(examples)
    owner = np.repeat(np.arange(rows), examples)
    return replace(
        found,
        sums=np.bincount(owner, weights=found.sums, minlength=rows).astype(np.float64),
        terms=np.bincount(owner, weights=found.terms, minlength=rows).astype(np.int64),
        sources=np.zeros(rows, dtype=np.int64),
        measures=averaged_measures(found.measures, owner, rows),
    )
