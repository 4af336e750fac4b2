"""The status of a sweep: each trial with its state and its result, the best one first. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from smollm3_finetune.files.locks import is_held
from smollm3_finetune.runs.summary import RunSummary
from smollm3_finetune.runs.traces import LOCK
from smollm3_finetune.sweep.decide import SweepTrial
from smollm3_finetune.sweep.results import Finished, Ranking, TrialResult, rank


@dataclass(frozen=True, kw_only=True)
class TrialStatus:
    trial: SweepTrial
    state: str
    """`new`, `running`, `submitted`, `interrupted`, `failed` or `finished`."""
    steps: int | None = None
    planned_steps: int | None = None
    before: float | None = None
    verdict: str | None = None
    """The verdict of the run, compared with its base."""
    seconds: float | None = None
    error: str | None = None
    result: TrialResult | None = None

    def as_dict(self) -> dict[str, Any]:
        result, trial = self.result, self.trial
        against = None if result is None or result.against_best is None else result.against_best.as_json()
        return {
            "trial": trial.name,
            "values": dict(trial.values),
            "state": self.state,
            "run": str(trial.run.path) if trial.run.path.is_dir() else None,
            "steps": self.steps,
            "planned_steps": self.planned_steps,
            "seconds": self.seconds,
            "before": self.before,
            "held_out_loss": None if result is None else result.loss,
            "low": None if result is None or result.half is None else result.loss - result.half,
            "high": None if result is None or result.half is None else result.loss + result.half,
            "verdict": self.verdict,
            "against_best": against,
            "error": self.error,
            "next": trial.action,
            "reason": trial.reason,
            "times": trial.times,
        }


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """The trials of a sweep: finished ones in the order of the objective, then the others in the order of the file."""

    trials: Sequence[TrialStatus]
    best: TrialStatus | None
    notes: Sequence[str]
    """Why the losses cannot be compared."""


def statuses(trials: Sequence[SweepTrial], *, running: bool) -> SweepStatus:
    """The status of each trial; `running`: whether a process runs the sweep."""
    found = [_status(trial, running=running) for trial in trials]
    ranking = rank([_finished(one.trial) for one in found if one.state == "finished"])
    order = {name: at for at, name in enumerate(ranking.results)}
    found = [_with_result(one, ranking) for one in found]
    found.sort(key=lambda one: order.get(one.trial.name, len(order)))
    best = next((one for one in found if one.trial.name == ranking.best), None)
    return SweepStatus(trials=found, best=best, notes=ranking.notes)


def _finished(trial: SweepTrial) -> Finished:
    seed = 0 if trial.loaded is None else trial.loaded.config.seed
    return Finished(name=trial.name, run=trial.run, values=trial.values, seed=seed)


def _with_result(one: TrialStatus, ranking: Ranking) -> TrialStatus:
    return replace(one, result=ranking.results.get(one.trial.name))


def _status(trial: SweepTrial, *, running: bool) -> TrialStatus:
    record, run = trial.record, trial.run
    if record is None:
        return TrialStatus(trial=trial, state="new")
    summary = RunSummary.of(run) if run.config.exists() else None
    state: str = record.state
    if is_held(run.path / LOCK):
        state = "running"
    elif run.report.is_file():
        state = "finished"
    elif state == "finished":
        state = "new"
    elif state == "running" and not running:  # the process was killed
        state = "interrupted"
    error = record.error if state == "failed" else None
    if state == "submitted" and summary is not None and summary.error is not None:  # its job has failed
        state, error = "failed", str(summary.error.get("message"))
    if summary is None:
        return TrialStatus(trial=trial, state=state, error=error)
    return TrialStatus(
        trial=trial,
        state=state,
        steps=summary.steps,
        planned_steps=summary.facts.steps,
        before=summary.before,
        verdict=summary.verdict,
        seconds=record.seconds or None,
        error=error,
    )
