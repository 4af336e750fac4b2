"""Tests: the promises of every tracker (conformance kit), and the text that node_exporter reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from smollm3_prometheus import check
from smollm3_prometheus.options import PrometheusOptions

from smollm3_finetune.api import ConfigError, Env, Purpose
from smollm3_finetune.testing import TrackerConformance

LINE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+)\} (\S+)')
"""A sample of Prometheus' text format with labels."""


def read(file: Path) -> dict[str, float]:
    """The samples of a file by name and state. Fails for a line that is not of the format, or a repeated one."""
    found: dict[str, float] = {}
    types = set[str]()
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# TYPE "):
            assert line.endswith(" gauge") and line not in types
            types.add(line)
            continue
        sample = LINE.fullmatch(line)
        assert sample is not None, line
        name, labels, value = sample.groups()
        state = re.search('state="([a-z]+)"', labels)
        key = f"{name} {state[1]}" if state else name
        assert key not in found, f"{key} is there twice"
        found[key] = float(value)
    return found


class TestPrometheus(TrackerConformance):
    component = "prometheus"

    def test_the_file_has_the_latest_values_and_the_state(self, tmp_path: Path) -> None:
        run = self.run_in(tmp_path)
        opened = self.open(self.tracker(tmp_path), run)
        file = run.directory / "trackers" / "prometheus" / "smollm3_run.prom"
        opened.log(1, {"loss": 2.5, "learning_rate": 1e-4})
        opened.log(2, {"loss": 2.25})
        found = read(file)
        assert found["smollm3_loss"] == 2.25 and found["smollm3_learning_rate"] == 1e-4
        assert found["smollm3_step"] == 2 and found["smollm3_total_steps"] == 2
        assert found["smollm3_state running"] == 1
        opened.end("failed", None)
        found = read(file)
        assert (found["smollm3_state running"], found["smollm3_state failed"]) == (0, 1)
        assert [p.name for p in file.parent.iterdir()] == [file.name]

    def test_any_names_give_valid_lines(self, tmp_path: Path) -> None:
        run = self.run_in(tmp_path, 'a "run"\\')
        opened = self.open(self.tracker(tmp_path), run)
        opened.log(
            1, {"rewards/margin": 1.0, "rewards margin": 2.0, "größe": 3.0, "1st": 4.0, "step": 9.0, "state": 5.0}
        )
        (file,) = (run.directory / "trackers" / "prometheus").iterdir()
        found = read(file)
        assert found["smollm3_rewards_margin"] == 1.0 and found["smollm3_1st"] == 4.0 and found["smollm3_step"] == 1


class TestDirectoryOfNodeExporter(TrackerConformance):
    component = "prometheus"

    def settings(self, directory: Path) -> Mapping[str, Any]:
        (directory / "textfile").mkdir(exist_ok=True)
        return {"directory": str(directory / "textfile")}

    def test_each_run_has_a_file(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            self.open(self.tracker(tmp_path), self.run_in(tmp_path, name)).end("finished", {})
        assert sorted(p.name for p in (tmp_path / "textfile").iterdir()) == [
            "smollm3_first.prom", "smollm3_second.prom",
        ]  # fmt: skip


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a directory"):
        check(PrometheusOptions(directory=str(tmp_path / "none")), Env(device="cpu", purpose=Purpose.TRAIN))
