"""Conformance tests for trackers: whole, failed and resumed runs, any values, and no secrets in files.

from smollm3_finetune.testing import TrackerConformance

class TestDashboard(TrackerConformance):
    component = "dashboard"
    environment = {"DASHBOARD_TOKEN": "a secret of the test"}
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from smollm3_finetune.api import TrackedRun, options_dict
from smollm3_finetune.checks.calls import environments
from smollm3_finetune.components.kinds import TRACKER
from smollm3_finetune.config.load import as_dict
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.testing.conformance import Conformance, demand, fail, outcome, plugin_path, skip

LIGHT = """
import json, sys
from smollm3_finetune.checks.calls import environments
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import TRACKER
from smollm3_finetune.components.selection import choose
from smollm3_finetune.errors import SmolLM3Error
files, name, options = json.loads(sys.argv[1])
chosen = choose(discover(PluginSelection(files=tuple(files))), TRACKER, name, options)
for env in environments() if chosen.spec.check is not None else ():
    try:
        chosen.spec.check(chosen.options, env)
    except SmolLM3Error:
        pass
print(json.dumps(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "transformers"})))
"""
Rows = list[tuple[int, dict[str, float]]]
STEPS: Rows = [
    (1, {"epoch": 0.5, "loss": 2.5, "learning_rate": 1e-4, "grad_norm": 1.25, "tokens_per_second": 321.5}),
    (2, {"epoch": 1.0, "loss": 2.25, "learning_rate": 5e-5, "grad_norm": 0.75, "tokens_per_second": 350.0}),
    (2, {"held_out_loss": 2.125, "perplexity": 8.3729}),
]
"""The values of a short run, as a run passes them on."""
ANY: Rows = [
    (10**9, {"loss": 1e300, "grad_norm": 1e-300, "learning_rate": 0.0, "rewards/margin": -1.5}),
    (10**9 + 1, {"größe in %": 1.0, "a b": 2.0, 'a"quote': 3.0, "1st": 4.0, "x" * 300: 5.0}),
]
"""Values of any size, under names that an objective may choose."""
REPORT = {"steps": 2, "tokens": 96, "seconds": 1.5, "before": {"held_out_loss": 2.5}, "after": {"held_out_loss": 2.125}}


class TrackerConformance(Conformance):
    """Subclass it and name the tracker; the tests are inherited. `settings` has options that depend on a directory."""

    kind = TRACKER
    environment: ClassVar[Mapping[str, str]] = {}
    """Environment variables with which it works. Their values are taken for secrets."""
    seconds: ClassVar[float] = 2.0
    """The longest time that a call may take."""

    def settings(self, directory: Path) -> Mapping[str, Any]:
        """Options for a test, in addition to those of the class. The directory belongs to the test."""
        return {}

    def received(self, run: TrackedRun) -> Iterable[tuple[int, Mapping[str, float]]] | None:
        """The steps and values of a run that arrived, read back without the tracker; None: they cannot be read."""
        return None

    # --------------------------------------------------------------------------------------- parts

    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def tracker(self, directory: Path) -> Any:
        """The tracker. The test is skipped if it needs options or variables that the class does not set."""
        chosen = self.choose(**self.settings(directory))
        if chosen.spec.check is not None:
            env = next(iter(environments()))
            _, error = outcome(lambda: chosen.spec.check(chosen.options, env))
            if isinstance(error, SmolLM3Error) and not self.options and not self.environment:
                skip(f"it does not work without options or variables: {error.message}")
            demand(error is None, f"check() refuses the options and variables of the test: {error}")
        return chosen.create()

    def run_in(self, directory: Path, name: str = "run", first_step: int = 0) -> TrackedRun:
        """A run whose directory exists."""
        path = directory / "runs" / name
        path.mkdir(parents=True, exist_ok=True)
        configuration = {**as_dict(RunConfig()), "tracker": {"name": self.component, **self.options}}
        return TrackedRun(
            name=name, directory=path, configuration=configuration, total_steps=2, first_step=first_step
        )  # fmt: skip

    def open(self, tracker: Any, run: TrackedRun) -> Any:
        opened = self.timed("open()", lambda: tracker.open(run))
        for method in ("log", "end"):
            demand(callable(getattr(opened, method, None)), f"open() must return an object with the method {method}()")
        return opened

    def timed(self, doing: str, call: Any) -> Any:
        """The result of a call that must not raise, and must return soon."""
        began = time.monotonic()
        result, error = outcome(call)
        took = time.monotonic() - began
        if error is not None:
            fail(f"{doing} raised {type(error).__name__}: {error}")
        demand(took < self.seconds, f"{doing} took {took:.1f} s, for which training waits")
        return result

    def log(self, opened: Any, rows: Rows) -> None:
        for step, values in rows:
            self.timed(f"log({step}, …)", lambda s=step, v=values: opened.log(s, dict(v)))

    def end(self, opened: Any, state: Literal["finished", "stopped", "failed"]) -> None:
        report = copy.deepcopy(REPORT) if state == "finished" else None
        self.timed(f"end({state!r}, …)", lambda: opened.end(state, report))

    # --------------------------------------------------------------------------------------- planning

    def test_a_check_refuses_with_a_hint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen = self.choose(**self.settings(tmp_path))
        if chosen.spec.check is None:
            skip("it has no check")
        for name in self.environment:
            monkeypatch.delenv(name)
        for env in environments():
            _, error = outcome(lambda e=env: chosen.spec.check(chosen.options, e))
            if isinstance(error, SmolLM3Error):
                demand(error.hint is not None, f"check() refuses without a hint: {error.message}")
            elif error is not None:
                fail(f"check() raises {type(error).__name__}, not a SmolLM3Error: {error}")

    def test_planning_imports_nothing_heavy(self, tmp_path: Path) -> None:
        files = [str(plugin_path(type(self), p)) for p in self.plugins]
        job = json.dumps([files, self.component, {**self.options, **self.settings(tmp_path)}])
        done = subprocess.run([sys.executable, "-c", LIGHT, job], capture_output=True, text=True, check=False)
        demand(done.returncode == 0, f"check() fails in a new process: {done.stderr[-300:]}")
        heavy = json.loads(done.stdout.splitlines()[-1])
        demand(not heavy, f"the hooks or check() import {', '.join(heavy)}")

    # --------------------------------------------------------------------------------------- runs

    def test_it_receives_a_run(self, tmp_path: Path) -> None:
        run = self.run_in(tmp_path)
        opened = self.open(self.tracker(tmp_path), run)
        self.log(opened, STEPS)
        self.end(opened, "finished")
        arrived = self.received(run)
        if arrived is None:
            return
        found = {(step, name): value for step, values in arrived for name, value in values.items()}
        for step, values in STEPS:
            for name, value in values.items():
                demand((step, name) in found, f"{name} of step {step} did not arrive")
                got = found[step, name]
                demand(got == pytest.approx(value, rel=1e-6), f"{name} of step {step} arrived as {got}, not {value}")

    @pytest.mark.parametrize("state", ["failed", "stopped"])
    @pytest.mark.parametrize("steps", [0, 1])
    def test_a_run_that_does_not_finish_is_ended(
        self, tmp_path: Path, state: Literal["failed", "stopped"], steps: int
    ) -> None:
        opened = self.open(self.tracker(tmp_path), self.run_in(tmp_path))
        self.log(opened, STEPS[:steps])
        self.end(opened, state)

    def test_a_resumed_run_may_repeat_steps(self, tmp_path: Path) -> None:
        first = self.open(self.tracker(tmp_path), self.run_in(tmp_path))
        self.log(first, STEPS)
        self.end(first, "stopped")
        again = self.open(self.tracker(tmp_path), self.run_in(tmp_path, first_step=1))
        self.log(again, STEPS[1:])
        self.end(again, "finished")

    def test_one_tracker_receives_two_runs(self, tmp_path: Path) -> None:
        tracker = self.tracker(tmp_path)
        for name in ("first", "second"):
            opened = self.open(tracker, self.run_in(tmp_path, name))
            self.log(opened, STEPS)
            self.end(opened, "finished")

    def test_values_may_have_any_name_and_size(self, tmp_path: Path) -> None:
        opened = self.open(self.tracker(tmp_path), self.run_in(tmp_path))
        self.log(opened, ANY)
        self.end(opened, "finished")

    def test_it_changes_nothing_of_the_run(self, tmp_path: Path) -> None:
        """It may write into `trackers/NAME` of the run directory, and leaves no thread that keeps Python alive."""
        before = {t for t in threading.enumerate() if not t.daemon}
        run = self.run_in(tmp_path)
        configuration = copy.deepcopy(run.configuration)
        opened = self.open(self.tracker(tmp_path), run)
        self.log(opened, STEPS)
        self.end(opened, "finished")
        demand(run.configuration == configuration, "it changed the configuration of the run")
        own = run.directory / "trackers" / self.choose(**self.settings(tmp_path)).spec.name
        others = [p for p in run.directory.rglob("*") if p.is_file() and own not in p.parents]
        shown = ", ".join(sorted(p.name for p in others))
        demand(not others, f"it wrote {shown} into the run directory, outside trackers/{own.name}")
        left = [t for t in threading.enumerate() if not t.daemon and t not in before and t.is_alive()]
        demand(not left, f"end() left the thread {left[0].name if left else ''} running")

    def test_secrets_are_not_saved(self, tmp_path: Path) -> None:
        """Options are saved in run.yaml: a secret must be the value of a variable that an option names."""
        if not self.environment:
            skip("the class sets no environment variables")
        chosen = self.choose(**self.settings(tmp_path))
        run = self.run_in(tmp_path)
        opened = self.open(self.tracker(tmp_path), run)
        self.log(opened, STEPS)
        self.end(opened, "finished")
        texts = {"its options": json.dumps(options_dict(chosen.options), default=str)}
        texts |= {p.name: p.read_bytes().decode(errors="replace") for p in run.directory.rglob("*") if p.is_file()}
        for variable, secret in self.environment.items():
            for where, text in texts.items():
                demand(secret not in text, f"the value of {variable} is saved in {where}")
