"""The check of every trial before the first one runs: names, options, pairing, packages, rows, as `smollm3 train`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from smollm3_finetune.config.schema import COMPONENT_SECTIONS
from smollm3_finetune.errors import ConfigError, Problems, SmolLM3Error, raise_all
from smollm3_finetune.pipeline.training import planned_in
from smollm3_finetune.sweep.decide import SweepTrial
from smollm3_finetune.sweep.naming import NamedTrial, named_problems
from smollm3_finetune.sweep.sweep import Sweep
from smollm3_finetune.train.start import PlannedRun

HELD_OUT_KEYS = {
    "model", "formatter", "data.validation", "data.held_out", "data.seed", "data.max_length", "data.long_text",
    "data.template", "data.add_tokens", "data.add_tokens_file", "data.enable_thinking", "data.history", "data.date",
    "data.ignore_columns",
}  # fmt: skip
"""Keys that decide which tokens are held out."""
OF_ROWS = {"data.path", "data.limit"}
"""Keys that also decide it, unless there are separate held-out rows."""


def plan_trials(sweep: Sweep, trials: Sequence[SweepTrial]) -> dict[str, PlannedRun]:
    """The plan of each trial that is not kept, by its name. Raises the problems of all of them together."""
    left = [trial for trial in trials if trial.action != "keep"]
    problems: list[tuple[NamedTrial, SmolLM3Error]] = []
    plans: dict[str, PlannedRun] = {}
    for trial in left:
        try:
            plans[trial.name] = plan_trial(sweep, trial)
        except SmolLM3Error as e:
            problems += [(trial, p) for p in (e.problems if isinstance(e, Problems) else (e,))]
    raise_all(named_problems(problems, sweep.file.path, len(left)))
    for line in dict.fromkeys([*_lost_options(sweep, left), *_other_rows(sweep.file.keys, trials)]):
        sweep.warn(line)
    return plans


def plan_trial(sweep: Sweep, trial: SweepTrial) -> PlannedRun:
    """Plan the run of a trial, or the rest of it. Raises a SmolLM3Error for everything that can be checked."""
    assert trial.loaded is not None
    planned = planned_in(
        trial.run,
        [sweep.file.run, sweep.settings, trial.settings],
        origin=str(sweep.file.path),
        part_of=sweep.about(trial),
        reading=sweep.reading,
        warn=sweep.warn,
    )
    if not sum(planned.plan.survey.held_out):
        raise ConfigError(
            "a sweep compares held-out losses, and there are no held-out rows",
            hint="run: {data: {held_out: 0.1}}, or run: {data: {validation: FILE}}",
        )
    return planned


def _lost_options(sweep: Sweep, trials: Collection[SweepTrial]) -> Iterator[str]:
    """Warnings for options of `run` that trials with another component do not have."""
    run = {s.key: s for s in sweep.file.run if s.key[0] in COMPONENT_SECTIONS and len(s.key) > 1}
    for trial in trials:
        assert trial.loaded is not None
        kept = {s.key for s in trial.loaded.settings}
        for key, setting in run.items():
            if key not in kept:
                name = next((s.value for s in trial.settings if s.key == (key[0], "name")), None)
                yield f"{setting.origin}: {'.'.join(key)} does not apply to trials with {key[0]}={name}"


def _other_rows(keys: Sequence[str], trials: Sequence[SweepTrial]) -> Iterator[str]:
    """A warning for keys with which the trials have other held-out rows, or another loss."""
    separate = all(t.loaded is not None and t.loaded.config.data.validation is not None for t in trials)
    deciding = HELD_OUT_KEYS if separate else HELD_OUT_KEYS | OF_ROWS
    for key in keys:
        if len({repr(t.values.get(key)) for t in trials}) < 2:
            continue
        if key in deciding or key.partition(".")[0] == "formatter":
            yield f"trials that differ in {key} have other held-out rows: their losses may not be comparable"
        elif key.partition(".")[0] == "objective":
            yield f"trials that differ in {key} have different losses, which are not compared"


def about_plan(planned: PlannedRun) -> dict[str, Any]:
    """What `--dry-run` shows of a plan: the model, the components and the rows."""
    plan = planned.plan
    return {
        "model": plan.model.ref,
        "quantizer": plan.model.quantizer.component.spec.name,
        "adapter": None if plan.model.adapter is None else plan.model.adapter.component.spec.name,
        "objective": plan.objective.component.spec.name,
        "rows": {"train": sum(plan.survey.train), "held_out": sum(plan.survey.held_out)},
    }
