"""The loss of each row, measured in batches: the same for any batch size, padded or flat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from smollm3_finetune.api import CountedObjective, MeasuringObjective, Objective, RowObjective
from smollm3_finetune.data.examples import Examples
from smollm3_finetune.errors import PluginError
from smollm3_finetune.evaluation.row_measures import (
    checked_measures,
    joined_measures,
    mean_measures,
    measures_as_json,
    measures_from_json,
)

if TYPE_CHECKING:
    from torch import nn

    from smollm3_finetune.reference.computed import Refer

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Loss:
    """A summed loss and the number of terms (supervised tokens) in it."""

    total: float = 0.0
    terms: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.total + other.total, self.terms + other.terms)

    @property
    def mean(self) -> float:
        """The loss per term; nan if there are no terms."""
        return self.total / self.terms if self.terms else math.nan

    @property
    def perplexity(self) -> float | None:
        """None if it is too large for a float, because JSON cannot represent infinity."""
        return math.exp(self.mean) if self.mean < 700 else None


@dataclass(frozen=True, kw_only=True, eq=False)
class RowLosses:
    """The summed loss of each row, in nats, and its number of terms; rows in their order, source by source."""

    sums: Floats
    """(R,)"""
    terms: Ints
    """(R,)"""
    sources: Ints
    """(R,): the index in `titles` of each row's source."""
    titles: tuple[str, ...]
    measures: Mapping[str, Floats] = field(default_factory=dict)
    """Other values of each row by name, such as its accuracy, (R,) each; nan for a row that does not have one."""
    per_token: bool = True
    """Whether terms are supervised tokens, so that the loss has a perplexity."""

    def __len__(self) -> int:
        return len(self.sums)

    @property
    def loss(self) -> Loss:
        """Over all rows."""
        return Loss(float(self.sums.sum()), int(self.terms.sum()))

    @property
    def perplexity(self) -> float | None:
        """None if it is too large for a float, or if terms are not tokens."""
        return self.loss.perplexity if self.per_token else None

    def has_rows_of(self, other: RowLosses) -> bool:
        """Whether both are losses of the same rows, as far as their terms and sources tell."""
        return np.array_equal(self.terms, other.terms) and np.array_equal(self.sources, other.sources)

    def of_source(self, source: int) -> RowLosses:
        """The rows of one source."""
        found = self._at(self.sources == source)
        return replace(found, sources=np.zeros(len(found), dtype=np.int64), titles=(self.titles[source],))

    def without(self, rows: Sequence[int]) -> RowLosses:
        """All rows but those at the given indices."""
        kept = np.ones(len(self), dtype=bool)
        kept[list(rows)] = False
        return self._at(kept)

    def _at(self, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> RowLosses:
        measures = {name: values[kept] for name, values in self.measures.items()}
        arrays = {"sums": self.sums[kept], "terms": self.terms[kept], "sources": self.sources[kept]}
        return replace(self, measures=measures, **arrays)

    def with_titles(self, titles: Sequence[str]) -> RowLosses:
        """The same rows, whose sources have other titles."""
        return replace(self, titles=tuple(titles))

    def report(self) -> dict[str, Any]:
        """Loss and perplexity over all terms, the loss by source if there are several, and the means of measures."""
        overall = self.loss
        if not overall.terms:
            return {"held_out_loss": None, "perplexity": None}
        found: dict[str, Any] = {"held_out_loss": overall.mean, "perplexity": self.perplexity}
        if measures := mean_measures(self.measures):
            found["measures"] = measures
        if len(self.titles) > 1:
            parts = {title: self.of_source(i).loss for i, title in enumerate(self.titles)}
            found["by_source"] = {title: one.mean for title, one in parts.items() if one.terms}
        return found

    def as_json(self) -> dict[str, Any]:
        """Lists of numbers, exact; titles are left out, because a resumed run may use other paths."""
        counts = np.bincount(self.sources, minlength=len(self.titles))
        found = {"rows_by_source": counts.tolist(), "terms": self.terms.tolist(), "losses": self.sums.tolist()}
        return {**found, "per_token": self.per_token, "measures": measures_as_json(self.measures)}

    @classmethod
    def from_json(cls, found: Any, titles: Sequence[str]) -> RowLosses | None:
        """The value of `as_json`; None if it is something else, or if the sources are not as many as `titles`."""
        try:
            counts = np.array(found["rows_by_source"], dtype=np.int64)
            sums, terms = np.array(found["losses"], dtype=np.float64), np.array(found["terms"], dtype=np.int64)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        one_each = sums.shape == terms.shape == (len(terms),) and counts.shape == (len(titles),)
        if not one_each or counts.min(initial=0) < 0 or counts.sum() != len(terms) or not np.isfinite(sums).all():
            return None
        measures = measures_from_json(found.get("measures", {}), len(terms))
        if measures is None:
            return None
        sources = np.repeat(np.arange(len(counts)), counts)
        about: dict[str, Any] = {"measures": measures, "per_token": found.get("per_token", True) is True}
        return cls(sums=sums, terms=terms, sources=sources, titles=tuple(titles), **about)


def joined(parts: Sequence[RowLosses]) -> RowLosses:
    """The rows of several sources as one; each part has one source."""
    return RowLosses(
        sums=np.concatenate([np.empty(0), *(p.sums for p in parts)]),
        terms=np.concatenate([np.empty(0, dtype=np.int64), *(p.terms for p in parts)]),
        sources=np.repeat(np.arange(len(parts)), [len(p) for p in parts]),
        titles=tuple(p.titles[0] for p in parts),
        measures=joined_measures([(p.measures, len(p)) for p in parts]),
        per_token=all(p.per_token for p in parts),
    )


def measure_rows(
    model: nn.Module,
    objective: Objective,
    examples: Examples | Sequence[Mapping[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Any],
    batch_size: int,
    *,
    title: str = "rows",
    advance: Callable[[int], None] = lambda rows: None,
    refer: Refer | None = None,
) -> RowLosses:
    """The loss of each of the `examples`, in evaluation mode and without gradients. Restores the mode of every module.

    `refer` adds the values of the reference to a batch, if the objective has one.
    An objective with neither `row_measures` nor `row_losses` is measured row by row. Raises PluginError if they do not
    return one value for each example.
    """
    import torch

    from smollm3_finetune.api.helpers import evaluating
    from smollm3_finetune.batching.probe import on_device

    at_once = batch_size if isinstance(objective, MeasuringObjective | RowObjective) else 1
    lengths = examples.lengths() if isinstance(examples, Examples) else [len(e["input_ids"]) for e in examples]
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)  # less padding; the order does not affect the rows
    sums, terms = np.zeros(len(lengths)), np.zeros(len(lengths), dtype=np.int64)
    measures: dict[str, Floats] = {}
    with evaluating(model), torch.no_grad():
        for start in range(0, len(by_length), at_once):
            rows = by_length[start : start + at_once]
            batch = on_device(collate([dict(examples[i]) for i in rows]), model)
            batch = batch if refer is None else refer(model, batch, rows)
            sums[rows], terms[rows], own = _of_batch(model, objective, batch, len(rows))
            for name, values in own.items():
                measures.setdefault(name, np.full(len(lengths), math.nan))[rows] = values
            advance(len(rows))
    about: dict[str, Any] = {"measures": measures, "per_token": not isinstance(objective, CountedObjective)}
    return RowLosses(sums=sums, terms=terms, sources=np.zeros(len(sums), dtype=np.int64), titles=(title,), **about)


def _of_batch(model: nn.Module, objective: Objective, batch: Any, rows: int) -> tuple[Floats, Ints, dict[str, Floats]]:
    """The sums, the terms and the measures of the examples of a batch."""
    if isinstance(objective, MeasuringObjective):
        return checked_measures(objective, objective.row_measures(model, batch), rows)
    if not isinstance(objective, RowObjective):
        total, count = objective.loss_sum(model, batch)
        return np.array([total], dtype=np.float64), np.array([count], dtype=np.int64), {}
    sums, terms = (values.detach().cpu() for values in objective.row_losses(model, batch))
    if tuple(sums.shape) != (rows,) or tuple(terms.shape) != (rows,):
        raise PluginError(
            f"row_losses() of {type(objective).__name__} returned the shapes {tuple(sums.shape)} and "
            f"{tuple(terms.shape)} for a batch of {rows} examples; both must be ({rows},)",
            hint="return one sum and one number of terms for each example",
        )
    return sums.double().numpy(), terms.long().numpy(), {}
