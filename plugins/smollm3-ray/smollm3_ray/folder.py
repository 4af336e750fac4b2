"""A folder in the run directory: what the workers tell the launching process, and what it asks of them.

Every process sees the run directory at the same path, so files reach all of them, on one machine and on several.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class RunFolder:
    """Files through which the launching process and the workers of a run communicate."""

    def __init__(self, run: Path) -> None:
        self.path = run / ".launched" / "ray"
        self.output = self.path / "output.log"
        """What the first worker prints, and which workers died."""
        self.read = 0
        """How much of `output` was read, in bytes."""

    def create(self) -> None:
        """Create it empty: what an earlier launch left is removed."""
        self.remove()
        self.path.mkdir(parents=True)
        self.output.touch()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    # the launching process, or the process of a trial

    def ask_to_stop(self) -> None:
        """Kept apart from the answers, which other processes write at the same time."""
        with contextlib.suppress(FileNotFoundError):  # of a launch that has ended
            (self.path / "stop").touch()

    def answer(self, measurements: int) -> None:
        """Let the worker continue, which waits after its measurement number `measurements`."""
        self._write("answered.json", {"answered": measurements})

    def new_lines(self) -> list[str]:
        """The lines of `output` that were not returned yet."""
        with contextlib.suppress(FileNotFoundError), self.output.open("rb") as file:
            file.seek(self.read)
            found, end, _ = file.read().rpartition(b"\n")
            self.read += len(found) + len(end)
            return [line for line in found.decode(errors="replace").splitlines() if line.strip()]
        return []

    def measurements(self) -> list[dict[str, float]]:
        """The held-out losses so far, each with its step."""
        with contextlib.suppress(FileNotFoundError):
            whole, _, _ = (self.path / "measured.jsonl").read_text().rpartition("\n")  # the last line may be unfinished
            return [json.loads(line) for line in whole.splitlines()]
        return []

    def has_begun(self) -> bool:
        """Whether the process of a trial has started."""
        return (self.path / "begun").exists()

    def has_stepped(self) -> bool:
        """Whether a worker finished a step, after which there is something to save."""
        return (self.path / "stepped").exists()

    def end(self) -> dict[str, Any] | None:
        """What `ended` wrote, or None."""
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.path / "end.json").read_text())
            return found
        return None

    # the workers

    def stop_asked(self) -> bool:
        return (self.path / "stop").exists()

    def answered(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return int(json.loads((self.path / "answered.json").read_text())["answered"])
        return 0

    def say(self, line: str) -> None:
        with self.output.open("a") as file:
            file.write(line + "\n")

    def begin(self) -> None:
        """Record that the process of a trial has started."""
        (self.path / "begun").touch()

    def stepped(self) -> None:
        (self.path / "stepped").touch()

    def measured(self, step: int, values: Mapping[str, float]) -> int:
        """Record a measurement, and return the number of measurements so far."""
        with (self.path / "measured.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        return len(self.measurements())

    def ended(self, *, stopped: bool, problem: str | None = None) -> None:
        """Record how a trial ended whose process did not die."""
        self._write("end.json", {"stopped": stopped, "problem": problem})

    # both

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a file whole, so that nobody reads a part of it."""
        if self.path.is_dir():
            part = self.path / f".{name}.{os.getpid()}"
            part.write_text(json.dumps(content))
            part.replace(self.path / name)


@contextlib.contextmanager
def run_folder(run: Path) -> Iterator[RunFolder]:
    """The folder of a run, which is removed at the end of the context."""
    folder = RunFolder(run)
    folder.create()
    try:
        yield folder
    finally:
        folder.remove()
