"""The finished trials in the order of the objective: held-out losses with intervals, compared row by row with the best.

Losses are only compared if they are of the same rows and are the same quantity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.evaluation.bootstrap import interval
from smollm3_finetune.evaluation.saved_losses import SavedLosses, saved_losses
from smollm3_finetune.evaluation.verdict import Comparison, compare
from smollm3_finetune.files.json import json_object
from smollm3_finetune.runs.rundir import RunDir

BASE_KEYS = ("model", "loader", "quant", "from", "fresh_adapter", "dtype")
"""Sections that decide the base, which the loss of some objectives is relative to."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """The objective of a finished trial."""

    loss: float
    """Held-out loss after training."""
    half: float | None = None
    """Half of its 95 % interval over the rows; None if there is none."""
    against_best: Comparison | None = None
    """`before` is the best trial, `after` this one; None for the best one, and if they cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The finished trials of a sweep, the lowest loss first."""

    results: Mapping[str, TrialResult]
    """By the name of the trial."""
    best: str | None
    """The trial with the lowest loss; None if the losses cannot be compared."""
    notes: Sequence[str]
    """Why losses cannot be compared, as sentences."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished trial, to be ranked."""

    name: str
    run: RunDir
    values: Mapping[str, Any]
    seed: int
    """That of the intervals."""


def rank(trials: Sequence[Finished]) -> Ranking:
    """The results of finished trials. Trials without held-out loss are left out."""
    losses: dict[str, SavedLosses] = {}
    measured: dict[str, TrialResult] = {}
    for trial in trials:
        after = json_object(trial.run.report).get("after")
        loss = after.get("held_out_loss") if isinstance(after, dict) else None
        if not isinstance(loss, int | float) or isinstance(loss, bool):
            continue
        saved = saved_losses(trial.run)
        if saved is not None and len(saved.rows):
            losses[trial.name] = saved
        measured[trial.name] = TrialResult(loss=float(loss), half=_half(saved, trial.seed))
    ranked = [t for t in trials if t.name in measured]
    ranked.sort(key=lambda t: measured[t.name].loss)
    notes = list(_notes(ranked, losses))
    if notes or not ranked:
        return Ranking(results={t.name: measured[t.name] for t in ranked}, best=None, notes=notes)
    best = ranked[0]
    results = {best.name: measured[best.name]}
    for trial in ranked[1:]:
        found = None
        if best.name in losses and trial.name in losses:
            found = compare(losses[best.name].rows, losses[trial.name].rows, seed=best.seed)
        own = measured[trial.name]
        results[trial.name] = TrialResult(loss=own.loss, half=own.half, against_best=found)
    return Ranking(results=results, best=best.name, notes=[])


def _half(saved: SavedLosses | None, seed: int) -> float | None:
    """Half of the 95 % interval of a loss over its rows."""
    if saved is None or not saved.rows.loss.terms:
        return None
    return interval(saved.rows.sums, saved.rows.terms, saved.rows.sources, seed=seed).half


def _notes(trials: Sequence[Finished], losses: Mapping[str, SavedLosses]) -> Iterator[str]:
    """Why the losses of these trials cannot be compared."""
    rows = {
        (saved.content, saved.rows.terms.tobytes(), saved.rows.sources.tobytes())
        if (saved := losses.get(t.name))
        else None
        for t in trials
    }
    if len(rows) > 1:
        yield "the held-out rows of the trials differ, so their losses cannot be compared"
    if differing := _differing(trials, ("objective",)):
        yield f"the trials differ in {', '.join(differing)}, so their losses are different quantities"
    elif any("reference" in json_object(t.run.report) for t in trials) and (found := _differing(trials, BASE_KEYS)):
        yield f"the loss is relative to a reference, and the trials differ in {', '.join(found)}: it cannot be compared"


def _differing(trials: Sequence[Finished], sections: Sequence[str]) -> list[str]:
    """The keys of these sections in which trials differ."""
    keys = dict.fromkeys(key for t in trials for key in t.values if key.partition(".")[0] in sections)
    return [key for key in keys if any(t.values.get(key) != trials[0].values.get(key) for t in trials)]
