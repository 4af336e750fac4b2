"""The tracker: a CSV file in the folder `trackers/prometheus` of the run directory."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from smollm3_finetune.api import TrackedRun

from smollm3_prometheus.options import PrometheusOptions

HEADER = ("step", "name", "value")


class PrometheusTracker:
    def __init__(self, options: PrometheusOptions) -> None:
        self.options = options

    def open(self, run: TrackedRun) -> PrometheusFile:
        """Called before the first step, in the first process. Whatever a tracker raises is shown in one line."""
        file = run.directory / "trackers" / "prometheus" / "metrics.csv"
        if run.first_step == 0 or not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.options.separator.join(HEADER) + "\n", encoding="utf-8")
        return PrometheusFile(file, self.options.separator)


class PrometheusFile:
    def __init__(self, file: Path, separator: str) -> None:
        self.file, self.separator = file, separator

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Called with the values of a step. Training waits for it."""
        with self.file.open("a", encoding="utf-8", newline="") as out:
            csv.writer(out, delimiter=self.separator).writerows((step, name, v) for name, v in values.items())

    def end(self, state: Literal["finished", "stopped", "failed"], report: Mapping[str, Any] | None) -> None:
        """Called once, last. `report` is the run's report.json if it finished."""
        self.file.with_name("state.txt").write_text(f"{state}\n", encoding="utf-8")
