"""Runs the trials of a sweep with Ray Tune, which decides when each starts and, with ASHA, when it ends.

Each trial has a process of Ray Tune. A run of one process is executed in it; for a run of several, it starts them with
Ray Train. After each measurement of the held-out loss, the run waits until Ray Tune has decided.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from smollm3_finetune.api import SmolLM3Error, Trial
from smollm3_ray.cluster import gpus_per_worker
from smollm3_ray.errors import as_one_sentence
from smollm3_ray.folder import RunFolder
from smollm3_ray.launcher import Background
from smollm3_ray.options import RayOptions, storage
from smollm3_ray.worker import AGAIN, HELD_OUT, RayObserver, Work, output_to

BESIDE = 0.01
"""CPUs of the process of a trial whose workers reserve their own."""


def run_trials(options: RayOptions, trials: Sequence[Trial], ended: Callable[[str, str | None], None]) -> None:
    """Run the trials and call `ended` after each, in the calling thread."""
    folders = {trial.name: RunFolder(trial.launch.run) for trial in trials}
    for folder in folders.values():
        folder.create()
    over = Over()
    try:
        fitting = Background(lambda: _tuner(options, trials, over).fit())
        request = _watch(fitting, folders, over, ended)
        if request is not None:
            raise request
        if fitting.error is not None:
            raise as_one_sentence(fitting.error)
    finally:
        for folder in folders.values():
            folder.remove()


def _watch(
    fitting: Background,
    folders: Mapping[str, RunFolder],
    over: Over,
    ended: Callable[[str, str | None], None],
) -> KeyboardInterrupt | None:
    """Report ended trials until all have ended; the request to stop that came meanwhile, after it was passed on."""
    request: KeyboardInterrupt | None = None
    reported: set[str] = set()
    running = True
    while running:
        try:
            running = fitting.wait(AGAIN)
            for name, problem in over.ends():
                end = folders[name].end()
                if name in reported or (request is not None and (end is None or end["stopped"])):
                    continue
                reported.add(name)
                ended(name, end["problem"] if end is not None else problem)
            if request is not None and not any(f.has_begun() and f.end() is None for f in folders.values()):
                running = False  # trials that were not begun need not start
        except KeyboardInterrupt as stop:
            if request is not None:
                raise
            request = stop
            for folder in folders.values():
                folder.ask_to_stop()
    return request


class Over(tune.Callback):  # type: ignore[misc]
    """Collects the trials that Ray Tune considers as ended."""

    def __init__(self) -> None:
        self.problems: dict[str, str | None] = {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.problems[trial.config["trial"]] = None

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.problems[trial.config["trial"]] = "its process died: it was killed, or its machine is gone"

    def ends(self) -> list[tuple[str, str | None]]:
        return list(self.problems.items())


class GentleAsha(ASHAScheduler):  # type: ignore[misc]
    """ASHA, which asks a run to stop instead of ending its process: the run then saves its state."""

    def __init__(self, runs: Mapping[str, Path], options: RayOptions) -> None:
        super().__init__(
            time_attr="step",
            grace_period=options.grace_steps,
            reduction_factor=options.reduction_factor,
            max_t=10**9,  # a trial that is not stopped early ends itself
        )
        self.runs = dict(runs)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision != TrialScheduler.STOP:
            return decision
        RunFolder(self.runs[trial.config["trial"]]).ask_to_stop()
        return str(TrialScheduler.CONTINUE)


def _tuner(options: RayOptions, trials: Sequence[Trial], over: Over) -> tune.Tuner:
    first = trials[0].launch
    gpus = gpus_per_worker(options, first)
    resources: dict[str, float] = {"cpu": BESIDE}
    if options.workers == 1:
        resources = {"cpu": options.cpus_per_worker, **({"gpu": gpus} if gpus else {})}
    trainable = tune.with_parameters(TrialProcess, trials={trial.name: trial for trial in trials}, options=options)
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"trial": tune.grid_search([trial.name for trial in trials])},
        tune_config=tune.TuneConfig(
            metric=HELD_OUT,
            mode="min",
            scheduler=GentleAsha({t.name: t.launch.run for t in trials}, options) if options.asha else FIFOScheduler(),
            max_concurrent_trials=_concurrent(options, gpus),
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=storage(options) or str(RunFolder(first.run).path / "tune"),
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a run has its own
            callbacks=[over],
            verbose=1 if options.logs else 0,
        ),
    )


def _concurrent(options: RayOptions, gpus: int) -> int | None:
    """How many trials run at the same time. Workers of several trials must not wait for one another's CPUs."""
    if options.workers == 1:
        return options.concurrent
    found = ray.cluster_resources()
    room = (found.get("CPU", 0) - 1) // (options.workers * options.cpus_per_worker)
    if gpus:
        room = min(room, found.get("GPU", 0) // (options.workers * gpus))
    return max(1, min(int(room), options.concurrent or int(room)))


class TrialProcess(tune.Trainable):  # type: ignore[misc]
    """The process of a trial: each step lasts until the next measurement, or the end of the run."""

    def setup(self, config: dict[str, Any], trials: Mapping[str, Trial], options: RayOptions) -> None:
        self.trial, self.options = trials[config["trial"]], options
        self.folder = RunFolder(self.trial.launch.run)
        self.folder.begin()
        self.seen = len(self.folder.measurements())  # of a process that died
        self.last: dict[str, Any] = {}
        self.thread = threading.Thread(target=self._run, daemon=True)

    def step(self) -> dict[str, Any]:
        if self.thread.ident is None and self.folder.stop_asked():
            self.folder.ended(stopped=True)
            return {"done": True}
        if self.thread.ident is None:
            self.thread.start()
        else:
            self.folder.answer(self.seen)
        while True:
            running = self.thread.is_alive()
            found = self.folder.measurements()
            if len(found) > self.seen:
                self.last = {**found[self.seen]}
                self.seen += 1
                return {**self.last, "done": False}
            if not running:
                return {**self.last, "done": True}
            time.sleep(AGAIN)

    def cleanup(self) -> None:
        """Let the run save its state and end, if it has not ended."""
        self.folder.ask_to_stop()
        if self.thread.ident is not None:
            self.thread.join()

    def _run(self) -> None:
        stopped, problem = False, None
        try:
            if self.options.workers == 1:
                self._run_here()
            else:
                self._run_workers()
            stopped = self.folder.stop_asked() and not (self.trial.launch.run / "report.json").exists()
        except KeyboardInterrupt as e:  # the time limit of the run
            problem = str(e)
        except SmolLM3Error as e:
            problem = e.message
        except BaseException as e:
            problem = as_one_sentence(e).message
        self.folder.ended(stopped=stopped, problem=problem)

    def _run_here(self) -> None:
        launch = self.trial.launch
        os.environ.update(launch.environment)
        work = Work(launch=launch, report_every=1, links=None, waits=True)
        with output_to(self.folder):
            launch.work(RayObserver(work, self.folder, True, lambda *_, **__: None))

    def _run_workers(self) -> None:
        from smollm3_ray.training import make_trainer

        make_trainer(self.options, self.trial.launch, waits=True).fit()
