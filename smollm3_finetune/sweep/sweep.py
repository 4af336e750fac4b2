"""A sweep whose file was read: its directory, its plugins, and what happens to its trials."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.components.registry import Registry, once
from smollm3_finetune.config.load import LoadedConfig, Setting
from smollm3_finetune.pipeline.inputs import Inputs, Reading, inputs_of_run
from smollm3_finetune.pipeline.state import Record, State, read_state, write_state
from smollm3_finetune.sweep.decide import SweepTrial, decide
from smollm3_finetune.sweep.file import SweepFile, read_sweep
from smollm3_finetune.sweep.layout import SweepDir
from smollm3_finetune.sweep.status import SweepStatus, statuses


@dataclass(frozen=True, kw_only=True)
class Sweep:
    file: SweepFile
    place: SweepDir
    reading: Reading
    warn: Callable[[str], None]
    settings: tuple[Setting, ...] = ()
    """Those of the command line, such as the launcher."""

    def decisions(self, state: State, *, tolerant: bool = False) -> list[SweepTrial]:
        """What happens to each trial; if `tolerant`, the reason may be that its inputs cannot be read."""
        common = [self.file.run, self.settings]
        return decide(self.file, self.place, state, common, self.inputs, tolerant=tolerant)

    def inputs(self, loaded: LoadedConfig) -> Inputs:
        return inputs_of_run(loaded, self.reading)

    def status(self) -> SweepStatus:
        """The status of each trial; nothing is written."""
        trials = self.decisions(read_state(self.place), tolerant=True)
        return statuses(trials, running=self.place.is_running())

    def write(self, state: State, name: str, record: Record) -> State:
        """The state with the record of a trial, written."""
        state = state.with_record(name, record)
        write_state(self.place, self.file, state)
        return state

    def command(self, verb: str) -> str:
        """The command that runs, resumes or shows this sweep with the same plugins and the same launcher."""
        ordered = sorted(self.settings, key=lambda s: s.key[1:] != ("name",))
        options = [text for s in ordered for text in _options(s)]
        return " ".join([self.reading.command(verb, self.file.path, "sweep"), *(options if verb != "status" else [])])

    def about(self, trial: SweepTrial) -> dict[str, str]:
        """What versions.json, reports and cards say about the sweep."""
        return {"sweep": self.file.name, "trial": trial.name}


def _options(setting: Setting) -> list[str]:
    """The options of the command line that make a setting of the launcher."""
    _, name = setting.key
    if name == "name":
        return ["--launcher", shlex.quote(str(setting.value))]
    return ["--launcher-opt", shlex.quote(f"{name}={setting.value}")]


def open_sweep(
    file: str | Path,
    *,
    settings: Sequence[Setting] = (),
    plugins: Sequence[str] = (),
    no_plugins: bool = False,
    find_plugins: Callable[[Sequence[str]], Registry],
    progress: Any,
    warn: Callable[[str], None],
) -> Sweep:
    """Read the file of a sweep. `find_plugins` is called once for each set of names."""
    read = read_sweep(file)
    reading = Reading(find_plugins=once(find_plugins), plugins=plugins, no_plugins=no_plugins, progress=progress)
    return Sweep(file=read, place=SweepDir.of(read), reading=reading, warn=warn, settings=tuple(settings))
