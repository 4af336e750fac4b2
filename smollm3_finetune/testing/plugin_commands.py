"""Conformance tests for commands: their help, what they refuse, and calls that work.

from smollm3_finetune.testing import CommandConformance

class TestCount(CommandConformance):
    component = "count"

    def works(self, directory):
        return [[str(finished_run(directory))]]

    def refused(self, directory):
        return [["no-such-run"]]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.checks.commands import each_command, missing_help, runs_help
from smollm3_finetune.components.kinds import COMMAND
from smollm3_finetune.errors import PluginError, SmolLM3Error
from smollm3_finetune.testing.commands import OFFLINE, Result, smollm3
from smollm3_finetune.testing.conformance import Conformance, demand, fail, outcome, plugin_path

LIGHT = """
import contextlib, io, json, sys
from smollm3_finetune.main import main
out, code = io.StringIO(), 0
try:
    with contextlib.redirect_stdout(out):
        main(json.loads(sys.argv[1]))
except SystemExit as e:
    code = e.code
heavy = sorted({m.split(".")[0] for m in sys.modules} & {"torch", "transformers"})
print(json.dumps([code, out.getvalue(), heavy]))
"""


def finished_run(directory: Path, *options: str) -> Path:
    """The directory of a finished run: the built-in model, trained for one step. `options` are those of `train`."""
    run = directory / "finished-run"
    if not (run / "report.json").exists():
        small = ("--max-steps", "1", "--set", "data.limit=20", "--set", "train.sample_tokens=2")
        adapter = () if any("--adapter" in o for o in options) else ("--adapter", "full")
        done = smollm3("train", *adapter, "--device", "cpu", *small, "--output", str(run), *options)
        if done.code:
            fail(f"the run of the test failed: {done.stderr}")
    return run


class CommandConformance(Conformance):
    """Subclass it and name the command; the tests are inherited."""

    kind = COMMAND

    def works(self, directory: Path) -> Iterable[Sequence[str]]:
        """Arguments with which the command succeeds. The directory belongs to the test."""
        return ()

    def refused(self, directory: Path) -> Iterable[Sequence[str]]:
        """Arguments that it refuses, as a user may type them by mistake."""
        return ()

    # --------------------------------------------------------------------------------------- parts

    @pytest.fixture(autouse=True)
    def _offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {**OFFLINE, "SMOLLM3_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)

    def words(self, *args: Any) -> list[str]:
        """The arguments of `smollm3` that call the command."""
        files = [str(plugin_path(type(self), p)) for p in self.plugins]
        return [*(word for file in files for word in ("-p", file)), self.component, *map(str, args)]

    def call(self, *args: Any) -> Result:
        """Run the command inside this process."""
        return smollm3(*self.words(*args))

    def command(self) -> Any:
        """The click command."""
        found, error = outcome(lambda: self.choose().component.command())
        if isinstance(error, SmolLM3Error):
            fail(str(error))
        demand(error is None, f"the command cannot be imported: {error}")
        return found

    # --------------------------------------------------------------------------------------- help

    def test_help_is_shown_and_imports_nothing_heavy(self) -> None:
        job = json.dumps([*self.words("--help")])
        done = subprocess.run([sys.executable, "-c", LIGHT, job], capture_output=True, text=True, check=False)
        demand(done.returncode == 0, f"its --help fails: {done.stderr[-300:]}")
        code, text, heavy = json.loads(done.stdout.splitlines()[-1])
        demand(not code and "Usage: smollm3" in text, f"its --help ends with {code}: {done.stderr[-300:]}")
        demand(not heavy, f"its --help imports {', '.join(heavy)}: import them inside the function of the command")

    def test_it_and_every_option_have_help(self) -> None:
        command = self.command()
        _, error = outcome(lambda: runs_help(command, self.component))
        demand(error is None, f"its help cannot be shown: {type(error).__name__}: {error}")
        missing = missing_help(command, self.component)
        demand(not missing, f"no help: {', '.join(missing)}")

    def test_it_is_called_as_its_descriptor_says(self) -> None:
        demand(bool(self.spec().summary.strip()), "the descriptor has no summary, which smollm3 --help shows")
        for alias in self.spec().aliases:
            code = smollm3(*self.words()[:-1], alias, "--help").code
            demand(code == 0, f"the alias {alias!r} does not call it")

    # --------------------------------------------------------------------------------------- calls

    def test_an_unknown_option_is_refused(self) -> None:
        for words, command in each_command(self.command(), self.component):
            if command.ignore_unknown_options:
                continue
            inner = words.split()[1:]
            done, error = outcome(lambda i=inner: self.call(*i, "--no-such-option"))
            demand(error is None, f"{words} --no-such-option raises {type(error).__name__}: {error}")
            assert done is not None
            demand(done.code == 2, f"{words} --no-such-option ends with {done.code}, not 2")

    def test_it_works(self, tmp_path: Path) -> None:
        for args in self.works(tmp_path):
            done = self.call(*args)
            demand(done.code == 0, f"{self.component} {' '.join(args)} ends with {done.code}: {done.stderr[-500:]}")
            demand("Traceback" not in done.stderr, f"{self.component} {' '.join(args)} prints a traceback")

    def test_mistakes_are_refused_in_a_sentence(self, tmp_path: Path) -> None:
        for args in self.refused(tmp_path):
            shown = f"{self.component} {' '.join(args)}"
            done = self.call(*args)
            demand(done.code != 0, f"{shown} succeeds")
            demand("Traceback" not in done.stderr, f"{shown} prints a traceback")
            demand(done.code != PluginError.exit_code, f"{shown} fails in the plugin: {done.stderr.strip()}")
            errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]
            demand(bool(errors), f"{shown} ends with {done.code} without an error in a sentence: {done.stderr[-300:]}")
