"""Protocols for launchers: what starts the processes of a planned run, here or on other machines."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from smollm3_finetune.api.models import Progress

Sharding = Literal["none", "fsdp2", "zero1", "zero2"]
"""What the processes of a run share: `none`, each has the whole model and optimizer; `zero1`, the optimizer's state;
`zero2`, also the gradients; `fsdp2`, also the weights."""


class Observer(Protocol):
    """Receives the progress of a run, in each of its processes."""

    def measured(self, step: int, values: Mapping[str, float]) -> bool:
        """Called with the values of a step: `loss`, `learning_rate`, …, and `held_out_loss` where it was measured.

        False stops the run, as a request to stop does: its state is saved, and it can be resumed.
        """
        ...

    def saved(self, step: int, checkpoint: Path) -> None:
        """Called after a checkpoint was written whole, in the process that wrote it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A run that was planned and checked, and whose processes are to be started. Can be pickled.

    The command begins the run, or continues it from its newest checkpoint. So a launcher starts it again, unchanged,
    in all processes, after one of them failed or the machine was taken away.
    """

    run: Path
    """The run directory, an absolute path; every process sees it at this path. The first process writes it; the
    others write only what ended them."""
    command: Sequence[str]
    """The arguments of each process, the Python interpreter first."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables to set in each process, beside those of the launching process."""
    device: str = "cpu"
    """The device type of the run: `cpu`, `cuda`, …"""
    name: str = ""
    """A name for the run, such as a job's: that of its directory."""
    worker: str = "smollm3_finetune.launching.worker:work"
    """The function that `work` calls."""

    def work(self, observer: Observer | None = None) -> Mapping[str, Any] | None:
        """Execute the command inside the calling process; for launchers whose processes are Python already.

        Of several processes, each must have WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Returns the
        report in the first process, None in the others, and in all if the observer stopped the run. Raises a
        SmolLM3Error for what ended the run, and KeyboardInterrupt after a signal to stop.
        """
        module, _, name = self.worker.partition(":")
        function: Callable[..., Mapping[str, Any] | None] = getattr(importlib.import_module(module), name)
        return function(self.run, observer)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What `launch` returns if it does not wait for the end of the run."""

    says: str
    """What was submitted, as a clause: `job 4711 is in the queue of partition 'gpu'`."""
    hint: str | None = None
    """A command that shows how the job is doing."""


class Launcher(Protocol):
    """Starts the processes of a run. `smollm3 train --launcher NAME` names it."""

    def describe(self, launch: Launch) -> str:
        """What `launch` would execute or submit, as text: a command line or a script. Starts nothing."""
        ...

    def launch(self, launch: Launch, progress: Progress) -> Submitted | None:
        """Start the processes and wait until all of them ended; or submit a job, and return what was submitted.

        Raises a SmolLM3Error if a process failed, after all others were ended. What the run itself reported as its
        error is added by core. A request to stop reaches the processes as a signal; see `run_processes`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Unique in its sweep: letters, digits, dots, hyphens and underscores."""
    launch: Launch
    values: Mapping[str, Any]
    """The swept configuration keys, such as `train.learning_rate`, and the values of this trial."""


class SweepLauncher(Launcher, Protocol):
    """A launcher with `LauncherSpec.sweeps`: it decides which trials of a sweep run at the same time, and how long."""

    def launch_trials(self, trials: Sequence[Trial], ended: Callable[[str, str | None], None]) -> None:
        """Run the trials, which are not finished yet, and return when none is running.

        `ended(name, problem)` is called after each trial: `problem` is None if it finished or was stopped early on
        purpose, otherwise what went wrong. One failed trial does not end the others.
        """
        ...
