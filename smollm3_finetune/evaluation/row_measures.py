"""Measures of single rows beside the loss, such as accuracy and margin: checked, joined, saved and read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smollm3_finetune.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

LOSS, TERMS = "loss", "terms"
"""The names in `row_measures` that are not measures: the summed loss of each row and its number of terms."""


def checked_measures(objective: Any, found: Any, rows: int) -> tuple[Floats, Ints, dict[str, Floats]]:
    """The summed losses, the terms and the measures of a batch of `rows` examples, from `row_measures`.

    Raises PluginError if a name is missing or is not an identifier, if there is not one value for each example, or if a
    measure is infinite.
    """
    who = f"row_measures() of {type(objective).__name__}"
    if not isinstance(found, Mapping) or not {LOSS, TERMS} <= set(found):
        names = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise PluginError(f"{who} returned {names}", hint="return a mapping that has 'loss' and 'terms'")
    values: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise PluginError(f"{who} returned the name {name!r}", hint="use letters, digits and underscores")
        values[name] = tensor.detach().cpu()
        if tuple(values[name].shape) != (rows,):
            raise PluginError(
                f"{who} returned {name!r} with the shape {tuple(values[name].shape)} for a batch of {rows} examples; "
                f"it must be ({rows},)",
                hint="return one value for each example",
            )
    sums, terms = values.pop(LOSS).double().numpy(), values.pop(TERMS).long().numpy()
    measures: dict[str, Floats] = {name: tensor.double().numpy() for name, tensor in values.items()}
    for name, array in measures.items():
        if np.isinf(array).any():
            raise PluginError(f"{who}: {name!r} is infinite", hint="return nan for a row without the value")
    return sums, terms, measures


def mean_measures(measures: Mapping[str, Floats]) -> dict[str, float]:
    """The mean of each measure over the rows that have it; measures that no row has are left out."""
    kept = {name: values[~np.isnan(values)] for name, values in measures.items()}
    return {name: float(values.mean()) for name, values in kept.items() if len(values)}


def joined_measures(parts: Sequence[tuple[Mapping[str, Floats], int]]) -> dict[str, Floats]:
    """The measures of several sources, each with its number of rows, as one; a source without rows has no names."""
    names = list(dict.fromkeys(name for measures, _ in parts for name in measures))
    return {
        name: np.concatenate([measures.get(name, np.full(rows, math.nan)) for measures, rows in parts])
        for name in names
    }


def averaged_measures(measures: Mapping[str, Floats], owner: Ints, rows: int) -> dict[str, Floats]:
    """The mean over the examples of each row. `owner` (E,) has the row of each example."""
    found: dict[str, Floats] = {}
    for name, values in measures.items():
        has = ~np.isnan(values)
        counts = np.bincount(owner[has], minlength=rows)
        with np.errstate(invalid="ignore"):
            sums = np.bincount(owner[has], weights=values[has], minlength=rows)
            found[name] = sums / np.where(counts, counts, math.nan)
    return found


def measures_as_json(measures: Mapping[str, Floats]) -> dict[str, list[float | None]]:
    """Lists of numbers, exact; None for a row without the value."""
    lists: dict[str, list[float]] = {name: values.tolist() for name, values in measures.items()}  # type: ignore[misc]
    return {name: [None if math.isnan(v) else v for v in values] for name, values in lists.items()}


def measures_from_json(found: Any, rows: int) -> dict[str, Floats] | None:
    """The value of `measures_as_json`; None if it is something else."""
    if not isinstance(found, Mapping):
        return None
    measures: dict[str, Floats] = {}
    for name, values in found.items():
        try:
            array: Floats = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            return None
        if array.shape != (rows,) or np.isinf(array).any():
            return None
        measures[str(name)] = array
    return measures
