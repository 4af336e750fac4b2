"""The tracker: a file in Prometheus' text format, which is replaced as a whole after each step."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from smollm3_finetune.api import TrackedRun
from smollm3_prometheus.options import PrometheusOptions

STATES = ("running", "finished", "stopped", "failed")


class PrometheusTracker:
    def __init__(self, options: PrometheusOptions) -> None:
        self.options = options

    def open(self, run: TrackedRun) -> PrometheusFile:
        own = run.directory / "trackers" / "prometheus"
        folder = own if self.options.directory is None else Path(self.options.directory).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        opened = PrometheusFile(folder / f"smollm3_{re.sub('[^A-Za-z0-9_-]+', '_', run.name)}.prom", run)
        opened.write("running")
        return opened


class PrometheusFile:
    def __init__(self, file: Path, run: TrackedRun) -> None:
        self.file, self.run = file, run
        self.step, self.latest = run.first_step, dict[str, float]()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step
        self.latest |= values
        self.write("running")

    def end(self, state: Literal["finished", "stopped", "failed"], report: Mapping[str, Any] | None) -> None:
        self.write(state)

    def write(self, state: str) -> None:
        """Replace the file: node_exporter must never read a part of it."""
        part = self.file.with_suffix(".part")
        part.write_text("".join(self.lines(state)), encoding="utf-8")
        part.replace(self.file)

    def lines(self, state: str) -> Iterator[str]:
        run = f'run="{escaped(self.run.name)}"'
        numbers: dict[str, float] = {"step": self.step, "total_steps": self.run.total_steps, "updated": time.time()}
        for name, value in self.latest.items():
            if metric(name) != "state":  # the name of what follows
                numbers.setdefault(metric(name), value)
        for name, value in numbers.items():
            yield f"# TYPE smollm3_{name} gauge\nsmollm3_{name}{{{run}}} {float(value)!r}\n"
        yield "# TYPE smollm3_state gauge\n"
        for one in STATES:
            yield f'smollm3_state{{{run},state="{one}"}} {int(one == state)}\n'


def metric(name: str) -> str:
    """A name that Prometheus accepts."""
    return re.sub("[^a-zA-Z0-9_]", "_", name)


def escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
