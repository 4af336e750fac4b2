"""Which trials are kept, continued or run: a finished trial is never run again as long as it would be the same run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from smollm3_finetune.config.load import LoadedConfig, Setting, assemble
from smollm3_finetune.errors import Problems, SmolLM3Error, raise_all
from smollm3_finetune.pipeline.inputs import Inputs
from smollm3_finetune.pipeline.state import Record, State
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.sweep.file import SweepFile, TrialValues
from smollm3_finetune.sweep.layout import SweepDir
from smollm3_finetune.sweep.naming import NamedTrial, named_problems

Action = Literal["keep", "continue", "run"]


@dataclass(frozen=True, kw_only=True)
class SweepTrial:
    """A trial, and what happens to it."""

    name: str
    """The name of its directory."""
    values: Mapping[str, Any]
    settings: tuple[Setting, ...]
    """Those of the trial alone."""
    loaded: LoadedConfig | None
    """Its configuration; None if it is not valid."""
    inputs: Inputs
    """What its run depends on; empty if this cannot be read."""
    action: Action
    reason: str
    """A few words: `finished`, `new`, `from step 40`, …"""
    run: RunDir
    record: Record | None = None
    times: int = 1
    """How often the file has it."""


def decide(
    sweep: SweepFile,
    place: SweepDir,
    state: State,
    common: Sequence[Sequence[Setting]],
    inputs: Callable[[LoadedConfig], Inputs],
    *,
    tolerant: bool = False,
) -> list[SweepTrial]:
    """What happens to each trial; equal ones are one. `common` are the settings of all trials.

    Raises the problems of all trials together, or with `tolerant` makes them the reason.
    """
    found: list[SweepTrial] = []
    problems: list[tuple[NamedTrial, SmolLM3Error]] = []
    equal: dict[tuple[tuple[str, str], ...], int] = {}
    taken = {*state.records, *(trial.name for trial in sweep.trials)}
    for trial in sweep.trials:
        loaded = None
        try:
            loaded = assemble([*common, trial.settings])
            its = inputs(loaded)
        except SmolLM3Error as e:
            problems += [(trial, p) for p in (e.problems if isinstance(e, Problems) else (e,))]
            found.append(_impossible(trial, place, state, loaded, e))
            continue
        key = tuple(sorted(its.items()))
        if key in equal:
            at = equal[key]
            found[at] = replace(found[at], times=found[at].times + 1)
            continue
        equal[key] = len(found)
        found.append(_decided(trial, place, state, loaded, its, taken))
        taken.add(found[-1].name)
    if not tolerant:
        raise_all(named_problems(problems, sweep.path, len(sweep.trials)))
    return found


def _decided(
    trial: TrialValues, place: SweepDir, state: State, loaded: LoadedConfig, inputs: Inputs, taken: Collection[str]
) -> SweepTrial:
    about: dict[str, Any] = {
        "values": trial.values, "settings": trial.settings, "loaded": loaded, "inputs": inputs,
    }  # fmt: skip
    begun = [(name, record) for name, record in state.records.items() if record.inputs == inputs]
    begun.sort(key=lambda one: (not RunDir(place.path / one[0]).report.is_file(), one[0] != trial.name))
    if not begun:
        name = place.vacant(trial.name, taken)
        reason = "new" if trial.name not in state.records else "its run would be another one"
        return SweepTrial(name=name, run=RunDir(place.path / name), action="run", reason=reason, **about)
    name, record = begun[0]
    run = RunDir(place.path / name)
    if run.report.is_file():
        return SweepTrial(name=name, run=run, action="keep", reason="finished", record=record, **about)
    waits = record.state == "submitted" and not run.error.is_file()
    if (waits or record.state == "stopped") and run.path.is_dir():
        reason = "stopped early" if record.state == "stopped" else "submitted as a job"
        return SweepTrial(name=name, run=run, action="keep", reason=reason, record=record, **about)
    if record.state in ("finished", "stopped") or waits:
        return SweepTrial(name=name, run=run, action="run", reason="its run was deleted", record=record, **about)
    return SweepTrial(name=name, run=run, action="continue", reason=_reached(run), record=record, **about)


def _impossible(
    trial: TrialValues, place: SweepDir, state: State, loaded: LoadedConfig | None, error: SmolLM3Error
) -> SweepTrial:
    """A trial whose inputs cannot be read; the run that has its name is shown."""
    first = error.problems[0] if isinstance(error, Problems) else error
    return SweepTrial(
        name=trial.name,
        values=trial.values,
        settings=trial.settings,
        loaded=loaded,
        inputs={},
        action="run",
        reason=f"it cannot be run: {first.message}",
        run=RunDir(place.path / trial.name),
        record=state.records.get(trial.name),
    )


def _reached(run: RunDir) -> str:
    """From where a trial that was begun is continued."""
    saved = run.saved.all()
    if run.trained.exists():
        return "after the last step"
    return f"from step {saved[-1].step}" if saved else "from the beginning"
