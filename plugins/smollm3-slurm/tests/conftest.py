"""A stand-in for a cluster, whose commands are first on PATH."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
PATIENCE = 240.0


@dataclass(frozen=True)
class Cluster:
    """Jobs that stand-ins execute."""

    place: Path

    def job(self, number: int = 4711) -> Path:
        return self.place / str(number)

    def state(self, number: int = 4711) -> str:
        return (self.job(number) / "state").read_text()

    def code(self, number: int = 4711) -> int:
        return int((self.job(number) / "code").read_text())

    def tasks(self, number: int = 4711) -> list[int]:
        file = self.job(number) / "tasks"
        return [int(task) for task in file.read_text().split()] if file.exists() else []

    def signal(self, name: signal.Signals, number: int = 4711) -> None:
        """Send a signal to each task, as Slurm does before a time limit."""
        for task in self.tasks(number):
            os.kill(task, name)

    def ended(self, number: int = 4711) -> str:
        self.until(lambda: self.state(number) not in ("", "PENDING", "RUNNING"))
        return self.state(number)

    @staticmethod
    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in COMMANDS:
        file = commands / name
        stand_in = Path(__file__).with_name("stand_in.py")
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(stand_in))} {name} "$@"\n')
        file.chmod(0o755)
    found = Cluster(tmp_path / "slurm")
    found.place.mkdir()
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STAND_IN", str(found.place))
    yield found
    for job in found.place.iterdir():
        (job / "cancelled").touch()
        for task in found.tasks(int(job.name)):
            with contextlib.suppress(OSError):
                os.kill(task, signal.SIGKILL)
