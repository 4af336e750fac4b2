"""Runs a sweep: all trials are checked, then those that are not finished run, and the state of each is written."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune import stopping
from smollm3_finetune.api import SweepLauncher, Trial
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.errors import ConfigError, SmolLM3Error
from smollm3_finetune.files.locks import is_held
from smollm3_finetune.launching.start import hand_over
from smollm3_finetune.pipeline.state import Record, State, read_state
from smollm3_finetune.runs.summary import RunSummary
from smollm3_finetune.runs.traces import LOCK
from smollm3_finetune.sweep.decide import SweepTrial
from smollm3_finetune.sweep.plan import plan_trials
from smollm3_finetune.sweep.sweep import Sweep
from smollm3_finetune.sweep.trials import Outcome, failed, start_trial
from smollm3_finetune.train.distributed.processes import world_size
from smollm3_finetune.train.start import PlannedRun

if TYPE_CHECKING:
    from smollm3_finetune.train.display import Display

PATIENCE = 0.5
"""Seconds between two looks at a trial that another process still trains."""


def dry_run(sweep: Sweep, *, must_exist: bool = False) -> list[tuple[SweepTrial, PlannedRun | None]]:
    """Check every trial; nothing is computed or written. The plan of a trial that is kept is None."""
    _check_command(sweep, must_exist=must_exist)
    trials = sweep.decisions(read_state(sweep.place))
    plans = plan_trials(sweep, trials)
    return [(trial, plans.get(trial.name)) for trial in trials]


def run_sweep(sweep: Sweep, shown: Display, *, must_exist: bool = False) -> list[SweepTrial]:
    """Run the trials that are not finished. Returns all trials as they are afterwards.

    With `must_exist`, a sweep that was never begun is an error. Raises the problems of all trials before any is run.
    The error of a single trial is recorded, and the others run.
    """
    _check_command(sweep, must_exist=must_exist)
    with sweep.place.held():
        state = read_state(sweep.place)
        trials = sweep.decisions(state)
        if _wait_for_others(sweep, trials):
            trials = sweep.decisions(state)
        plans = plan_trials(sweep, trials)
        running = _Running(sweep=sweep, state=state, trials=trials)
        running.keep()
        left = [(trial, plans[trial.name]) for trial in trials if trial.name in plans]
        if left and left[0][1].plan.launcher.spec.sweeps:
            _run_together(running, left, shown)
        else:
            _run_in_turn(running, left, shown)
        return sweep.decisions(running.state)


@dataclass
class _Running:
    """The state of a sweep while its trials run. Launchers may report from several threads."""

    sweep: Sweep
    state: State
    trials: Sequence[SweepTrial]
    began: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def title(self, trial: SweepTrial) -> str:
        return f"trial {self.trials.index(trial) + 1}/{len(self.trials)} {trial.name}"

    def say(self, text: str) -> None:
        self.sweep.reading.progress.say(text)

    def keep(self) -> None:
        """Record the trials that finished without being recorded, because the sweep was killed."""
        for trial in self.trials:
            if trial.action == "keep":
                self.say(f"{self.title(trial)}: kept ({trial.reason}), {trial.run.path}")
                if trial.record is not None and trial.record.state not in ("finished", "stopped", "submitted"):
                    self._write(trial, replace(trial.record, state="finished", error=None))

    def begin(self, trial: SweepTrial) -> None:
        """Record that a trial runs."""
        self.began[trial.name] = time.monotonic()
        before = trial.record if trial.action == "continue" else None
        record = Record(
            kind="train",
            directory=trial.run.path.name,
            inputs=trial.inputs,
            state="running",
            began=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            seconds=0.0 if before is None else before.seconds,
        )
        self._write(trial, record)

    def end(self, trial: SweepTrial, outcome: Outcome) -> None:
        """Record what became of a trial, and say it."""
        record = self.state.records[trial.name]
        seconds = round(record.seconds + time.monotonic() - self.began[trial.name], 1)
        self._write(trial, replace(record, state=outcome.state, error=outcome.error, seconds=seconds))
        about = {
            "failed": f"failed: {outcome.error}",
            "submitted": f"submitted: {outcome.note}",
            "stopped": "stopped early by the launcher",
            "finished": _loss(trial),
        }.get(outcome.state)
        if about is not None:
            self.say(f"{self.title(trial)}: {about}")

    def _write(self, trial: SweepTrial, record: Record) -> None:
        with self.lock, stopping.deferred():
            self.state = self.sweep.write(self.state, trial.name, record)

    @contextlib.contextmanager
    def stoppable(self, running: Sequence[SweepTrial]) -> Iterator[None]:
        """Record that trials were interrupted by a request to stop, and say how the sweep is continued."""
        try:
            yield
        except KeyboardInterrupt as e:
            if isinstance(e, stopping.Stop):
                e.message = f"{f'trial {running[0].name}' if len(running) == 1 else 'sweep'}: {e.message}"
                e.hint = f"to continue: {self.sweep.command('resume')}"
            for trial in running:
                # what ended the sweep is reported, not an error here; a deferred request is the same one again
                with contextlib.suppress(OSError, SmolLM3Error, KeyboardInterrupt):
                    if self.state.records[trial.name].state == "running":
                        self.end(trial, Outcome("interrupted"))
            raise


def _loss(trial: SweepTrial) -> str:
    loss = RunSummary.of(trial.run).after
    return "finished" if loss is None else f"finished, held-out loss {loss:.4f}"


def _run_in_turn(running: _Running, left: Sequence[tuple[SweepTrial, PlannedRun]], shown: Display) -> None:
    """One trial after the other."""
    progress = running.sweep.reading.progress
    for trial, planned in left:
        stopping.check()
        what = f"continued ({trial.reason})" if trial.action == "continue" else "run"
        running.say(f"{running.title(trial)}: {what}, {trial.run.path}")
        running.begin(trial)
        with running.stoppable([trial]):
            outcome = start_trial(planned, shown, progress, no_plugins=running.sweep.reading.no_plugins)
        running.end(trial, outcome)


def _run_together(running: _Running, left: Sequence[tuple[SweepTrial, PlannedRun]], shown: Display) -> None:
    """All trials by a launcher that decides which of them run at the same time, and how long."""
    selected = left[0][1].plan.launcher
    launcher: SweepLauncher = selected.create()
    given: list[Trial] = []
    by_name: dict[str, SweepTrial] = {}
    for trial, planned in left:
        running.begin(trial)
        try:
            with running.stoppable([trial for trial, _ in left if trial.name in running.began]):
                _, launch = hand_over(planned, shown, no_plugins=running.sweep.reading.no_plugins)
        except Exception as e:
            running.end(trial, failed(e))
            continue
        by_name[trial.name] = trial
        given.append(Trial(name=trial.name, launch=launch, values=dict(trial.values)))

    def ended(name: str, problem: str | None) -> None:
        trial = by_name[name]
        if problem is not None:
            running.end(trial, Outcome("failed", error=problem))
        else:
            running.end(trial, Outcome("finished" if trial.run.report.is_file() else "stopped"))

    if not given:
        return
    with running.stoppable(list(by_name.values())), attributed_to(selected.component, "launch_trials()"):
        launcher.launch_trials(given, ended)
    for trial in by_name.values():
        if running.state.records[trial.name].state == "running":
            missing = f"{selected.component.title} did not report its end"
            done = trial.run.report.is_file()
            running.end(trial, Outcome("finished") if done else Outcome("failed", error=missing))


pause = time.sleep


def _wait_for_others(sweep: Sweep, trials: Sequence[SweepTrial]) -> bool:
    """Wait for processes of an earlier command that was killed; returns whether there was one."""
    waited = False
    for trial in trials:
        said = False
        while is_held(trial.run.path / LOCK):
            if not said:
                sweep.reading.progress.say(f"trial {trial.name} is still being trained by another process: waiting")
            said = waited = True
            pause(PATIENCE)
    return waited


def failures(sweep: Sweep, trials: Sequence[SweepTrial]) -> Mapping[str, str]:
    """The errors of the trials that failed, by their names."""
    records: Mapping[str, Any] = {trial.name: trial.record for trial in trials if trial.record is not None}
    return {name: record.error for name, record in records.items() if record.state == "failed" and record.error}


def check_failures(sweep: Sweep, trials: Sequence[SweepTrial]) -> None:
    """Raises SmolLM3Error if a trial failed."""
    found = failures(sweep, trials)
    if found:
        raise SmolLM3Error(
            f"{len(found)} of {len(trials)} trials failed: {', '.join(found)}",
            hint=f"after the fault is fixed: {sweep.command('resume')}",
        )


def _check_command(sweep: Sweep, *, must_exist: bool) -> None:
    """Raises ConfigError for several processes, and for a sweep that must exist."""
    if world_size() > 1:
        raise ConfigError(
            "a sweep is started in one process, which starts those of its trials",
            hint=f"{sweep.command('run')} --launcher torchrun",
        )
    if must_exist and not sweep.place.state.exists():
        raise ConfigError(f"there is nothing to resume: {sweep.place.path} holds no sweep", hint=sweep.command("run"))
