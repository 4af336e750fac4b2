"""How the rows of a step are divided among processes, and what a resumed run may change about it.

A step sums over its rows, so another division of the same rows gives the same step, except for rounding.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from smollm3_finetune.config.load import LoadedConfig, Setting, assemble
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.errors import ConfigError, IncompatibleError
from smollm3_finetune.files.json import json_object
from smollm3_finetune.runs.checkpoints import Checkpoint
from smollm3_finetune.runs.rundir import RunDir

BATCH_SIZE, ACCUMULATION = ("train", "batch_size"), ("train", "gradient_accumulation")
KEYS = {BATCH_SIZE, ACCUMULATION}
"""Keys that a resumed run may change if the rows of a step stay the same."""


@dataclass(frozen=True)
class Division:
    """The rows of a step: `batch_size` in each batch, `gradient_accumulation` batches in each of the `processes`."""

    batch_size: int
    gradient_accumulation: int
    processes: int

    @classmethod
    def of(cls, config: RunConfig, processes: int) -> Division:
        return cls(config.train.batch_size, config.train.gradient_accumulation, processes)

    @classmethod
    def at_start(cls, run: RunDir, config: RunConfig) -> Division:
        """That with which a run began. `config` is the run's, from which earlier versions allowed no change."""
        saved, own = json_object(run.versions), cls.of(config, 1)
        values = [saved.get(name, default) for name, default in own.about().items()]
        usable = all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
        return cls(values[1], values[2], values[0]) if usable else own

    def about(self) -> dict[str, int]:
        """For versions.json."""
        return {
            "processes": self.processes,
            "batch_size": self.batch_size,
            "gradient_accumulation": self.gradient_accumulation,
        }

    @property
    def rows(self) -> int:
        return self.at_a_time * self.gradient_accumulation

    @property
    def at_a_time(self) -> int:
        """The rows that all processes take at a time."""
        return self.batch_size * self.processes

    def __str__(self) -> str:
        """For messages: `train.batch_size=2, train.gradient_accumulation=4 and 2 processes`."""
        return f"{self.settings} and {counted(self.processes)}"

    @property
    def settings(self) -> str:
        return f"train.batch_size={self.batch_size}, train.gradient_accumulation={self.gradient_accumulation}"


def counted(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def divided(run: RunDir, loaded: LoadedConfig, changes: Sequence[Setting], processes: int) -> LoadedConfig:
    """The configuration of a resumed run, with a division of the same rows among `processes`.

    `changes` are the settings of the resumption. Settings that they do not contain are chosen: those of the run's file
    if they still fit, otherwise those with which the run began, otherwise that batch size or the largest one below it.
    Raises IncompatibleError if the rows cannot be divided, and ConfigError if the settings do not divide them.
    """
    start, now = Division.at_start(run, loaded.config), Division.of(loaded.config, processes)
    stated = {s.key: s for s in changes if s.key in KEYS}
    batch_size = loaded.config.train.batch_size if BATCH_SIZE in stated else None
    accumulation = loaded.config.train.gradient_accumulation if ACCUMULATION in stated else None
    grouped = loaded.config.train.group_by_length
    if not stated and now.rows == start.rows and (not grouped or now.at_a_time == start.at_a_time):
        return loaded
    found = _division(start, processes, batch_size, accumulation, grouped)
    if found is None or found.rows != start.rows:
        if stated:
            given = " and ".join(f"{'.'.join(s.key)}={s.value}" for s in stated.values())
            raise ConfigError(
                f"{given} and {counted(processes)} do not give the {start.rows} rows of each step with which the run "
                f"{run.path} began",
                hint=f"omit {' and '.join(s.origin for s in stated.values())}",
            )
        raise IncompatibleError(
            f"the run {run.path} began with {counted(start.processes)}, but {processes} are running: "
            f"the {start.at_a_time if grouped else start.rows} rows of a "
            f"{'group of similar length' if grouped else 'step'} cannot be divided evenly",
            hint=as_before(run, start),
        )
    origin = f"{counted(processes)} instead of {start.processes}"
    new = [
        Setting(key=BATCH_SIZE, value=found.batch_size, origin=origin, given=False),
        Setting(key=ACCUMULATION, value=found.gradient_accumulation, origin=origin, given=False),
    ]
    return assemble([loaded.settings, [s for s in new if s.key not in stated]])


def _division(
    start: Division, processes: int, batch_size: int | None, accumulation: int | None, grouped: bool
) -> Division | None:
    """The division for a number of processes; None if there is none. Values that are None are chosen."""
    if batch_size is None and accumulation is None:
        if processes == start.processes:
            return start
        of_each, rest = divmod(start.at_a_time if grouped else start.rows, processes)
        if rest:
            return None
        if grouped:
            return Division(of_each, start.gradient_accumulation, processes)
        batch_size = next(n for n in range(min(start.batch_size, of_each), 0, -1) if of_each % n == 0)
    if batch_size is None:
        assert accumulation is not None
        batch_size = start.rows // (accumulation * processes)
    elif accumulation is None:
        accumulation = start.rows // (batch_size * processes)
    return Division(batch_size, accumulation, processes) if batch_size and accumulation else None


def check_division(
    run: RunDir, config: RunConfig, processes: int, checkpoint: Checkpoint, batch_term: str | None
) -> str | None:
    """A line that states the division of a resumed run, if it differs from that at the start; None if it does not.

    `batch_term` is the part of the loss that depends on which rows share a batch. Raises IncompatibleError, with the
    reason, if the steps would differ from those with the former division by more than rounding.
    """
    start, now = Division.at_start(run, config), Division.of(config, processes)
    if now == start or checkpoint.only_adapter:
        return None
    reason = None
    if batch_term is not None:
        reason = f"{batch_term} depends on which rows share a batch"
    elif config.train.group_by_length and now.at_a_time != start.at_a_time:
        reason = (
            f"train.group_by_length sorts {start.at_a_time} rows at a time, and {now.settings} and "
            f"{counted(processes)} take {now.at_a_time}"
        )
    elif checkpoint.draws is None:
        reason = f"{checkpoint.path} does not state whether its steps draw random numbers"
    elif checkpoint.draws:
        reason = "its steps draw random numbers, as dropout does, and each process draws its own"
    elif checkpoint.rounds and now.batch_size != start.batch_size:
        reason = "its quantized layers round activations, which may depend on the rows that share a batch"
    elif not checkpoint.counted:
        reason = "its loss is not divided by the number of terms in a step, but averaged over batches"
    if reason is not None:
        what = f"with {counted(start.processes)}" if processes != start.processes else f"with {start.settings}"
        raise IncompatibleError(
            f"the run {run.path} can only be resumed {what}, as it began: {reason}", hint=as_before(run, start)
        )
    return f"the run began with {start}; it continues with {now}: each step has the same {start.rows} rows"


def as_before(run: RunDir, start: Division) -> str:
    """The command that resumes a run with the number of processes with which it began."""
    program = f"torchrun --nproc-per-node {start.processes} -m smollm3_finetune.main"
    return f"{'smollm3' if start.processes == 1 else program} train --resume {shlex.quote(str(run.path))}"
