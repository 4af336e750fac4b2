"""The launcher: starts the workers of a run, shows what they print, and passes requests to stop on."""

from __future__ import annotations

import math
import os
import shlex
import threading
from collections.abc import Callable, Sequence
from typing import Any

from smollm3_finetune.api import Launch, Progress, Trial
from smollm3_ray.cluster import connected, gpus_per_worker
from smollm3_ray.errors import as_one_sentence
from smollm3_ray.folder import RunFolder, run_folder
from smollm3_ray.options import RayOptions

LOOK = 0.3
"""Seconds between two looks at what the workers print."""


class RayLauncher:
    def __init__(self, options: RayOptions) -> None:
        self.options = options

    def describe(self, launch: Launch) -> str:
        options, gpus = self.options, gpus_per_worker(self.options, launch)
        count = f"{options.workers}" if options.min_workers is None else f"{options.min_workers} to {options.workers}"
        each = f"{options.cpus_per_worker} CPU" + (f" and {gpus} GPU" if gpus else "")
        where = "on this machine" if options.address is None else f"at {options.address}"
        limit = {-1: "always", 0: "never"}.get(options.max_failures, f"up to {options.max_failures} times")
        lines = [
            f"Ray {where}: Ray Train with {count} {'worker' if count == '1' else 'workers'} of {each}",
            f"restarted after a failure: {limit}, from the newest checkpoint",
        ]
        if options.storage_path is not None:
            lines.append(f"the newest checkpoint is copied to {options.storage_path}")
        return "\n".join([*lines, f"each worker executes: {shlex.join(launch.command)}"])

    def launch(self, launch: Launch, progress: Progress) -> None:
        options = self.options
        cpus = options.workers * options.cpus_per_worker
        with run_folder(launch.run) as folder, connected(options, launch, cpus=cpus):
            from smollm3_ray.training import make_trainer

            _say_what_is_missing(options, launch, progress)
            fitting = Background(lambda: make_trainer(options, launch).fit())
            _watch(fitting, folder, progress)
            if fitting.error is not None:
                raise as_one_sentence(fitting.error)

    def launch_trials(self, trials: Sequence[Trial], ended: Callable[[str, str | None], None]) -> None:
        if not trials:
            return
        options, first = self.options, trials[0].launch
        each = options.workers * options.cpus_per_worker
        cpus = max(each, os.cpu_count() or 1) + (options.workers > 1)  # the process of a trial beside its workers
        with connected(options, first, cpus=cpus):
            from smollm3_ray.tuning import run_trials

            run_trials(options, trials, ended)


class Background:
    """A function that runs in a thread, because Ray would replace the handler of SIGINT in the main thread."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.error: BaseException | None = None
        self.done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self.function()
        except BaseException as e:
            self.error = e
        finally:
            self.done.set()

    def wait(self, seconds: float) -> bool:
        """Whether it is still running after so many seconds.

        Not by `Thread.join`: in Python 3.11 a thread whose join a signal interrupts counts as ended.
        """
        return not self.done.wait(seconds)


def _watch(fitting: Background, folder: RunFolder, progress: Progress) -> None:
    """Show what the workers print until they have ended. A request to stop is raised after they saved their state."""
    request: KeyboardInterrupt | None = None
    running = True
    while running:
        try:
            running = fitting.wait(LOOK)
            for line in folder.new_lines():
                progress.say(line)
        except KeyboardInterrupt as stop:
            if request is not None or not folder.has_stepped():
                raise  # nothing was computed that could be saved
            request = stop
            folder.ask_to_stop()
    if request is not None:
        raise request


def _say_what_is_missing(options: RayOptions, launch: Launch, progress: Progress) -> None:
    """Say what a cluster lacks: it may start more machines, and until then Ray waits without a word."""
    import ray

    found = ray.cluster_resources()
    workers = options.min_workers or options.workers
    needed = {"CPU": workers * options.cpus_per_worker, "GPU": workers * gpus_per_worker(options, launch)}
    for kind, number in needed.items():
        if number > found.get(kind, 0):
            progress.say(
                f"ray: the run needs {number} {kind}s and the cluster has {math.floor(found.get(kind, 0))}: "
                "waiting for more machines"
            )
