"""A tracker with one fault each fails the kit with a sentence that names it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.testing import TrackerConformance

SOURCE = """
import json, os, threading, time
from dataclasses import dataclass
from smollm3_finetune.api import ConfigError, TrackerSpec, hookimpl, option

@dataclass(frozen=True, kw_only=True)
class Options:
    variable: str = option("KIT_TOKEN", "The variable of the token.")

def check(options, env):
    if options.variable not in os.environ:
        raise ConfigError("the token is missing", hint="export KIT_TOKEN=...")

@hookimpl
def smollm3_trackers():
    return [TrackerSpec(name="lines", summary="lines", factory="lines:Lines", options="lines:Options",
                        check=check, api=2)]

class Lines:
    def __init__(self, options):
        self.token = os.environ[options.variable]

    def open(self, run):
        folder = run.directory / "trackers" / "lines"
        folder.mkdir(parents=True, exist_ok=True)
        return Opened(folder / "lines.jsonl", self.token)

class Opened:
    def __init__(self, file, token):
        self.file, self.token, self.ended = file, token, False

    def log(self, step, values):
        with open(self.file, "a") as out:
            out.write(json.dumps([step, dict(values)]) + chr(10))

    def end(self, state, report):
        if state == "finished":
            assert report["steps"] == 2
"""
WRITES = "out.write(json.dumps([step, dict(values)]) + chr(10))"
FAULTS: dict[str, tuple[str, str, str, str]] = {
    "lost": ("test_it_receives_a_run", "[step, dict(values)]", '[step, {"loss": values.get("loss", 0.0)}]',
             "epoch of step 1 did not arrive"),
    "rounded": ("test_it_receives_a_run", "dict(values)]", "{k: round(v) for k, v in values.items()}]",
                "arrived as"),
    "none": ("test_it_receives_a_run", "return Opened(folder", "Opened(folder", "an object with the method log()"),
    "slow": ("test_it_receives_a_run", WRITES, WRITES + "; time.sleep(0.3)", "for which training waits"),
    "report": ("test_a_run_that_does_not_finish_is_ended", 'if state == "finished":', "if True:",
               "end('failed', …) raised TypeError"),
    "repeats": ("test_a_resumed_run_may_repeat_steps", "mkdir(parents=True, exist_ok=True)", "mkdir(parents=True)",
                "open() raised FileExistsError"),
    "names": ("test_values_may_have_any_name_and_size", WRITES, "assert all(k.isidentifier() for k in values)",
              "raised AssertionError"),
    "outside": ("test_it_changes_nothing_of_the_run", 'folder / "lines.jsonl"', 'run.directory / "lines.jsonl"',
                "it wrote lines.jsonl into the run directory"),
    "changes": ("test_it_changes_nothing_of_the_run", 'folder = run', 'run.configuration["x"] = 1; folder = run',
                "it changed the configuration"),
    "thread": ("test_it_changes_nothing_of_the_run", 'if state == "finished":',
               "threading.Timer(1, print).start()\\n        if True:", "end() left the thread"),
    "secret": ("test_secrets_are_not_saved", "[step, dict(values)]", "[step, dict(values), self.token]",
               "the value of KIT_TOKEN is saved in lines.jsonl"),
    "no-hint": ("test_a_check_refuses_with_a_hint", ', hint="export KIT_TOKEN=..."', "", "refuses without a hint"),
    "check": ("test_a_check_refuses_with_a_hint", "if options.variable not in os.environ:",
              "if not os.environ[options.variable]:", "check() raises KeyError, not a SmolLM3Error"),
    "heavy": ("test_planning_imports_nothing_heavy", "def check(options, env):",
              "def check(options, env):\\n    __import__('sys').modules['torch'] = os", "import torch"),
}  # fmt: skip


class Lines(TrackerConformance):
    component = "lines"
    environment = {"KIT_TOKEN": "a token of the kit"}  # noqa: RUF012
    seconds = 0.2

    def received(self, run: Any) -> Any:
        file = run.directory / "trackers" / "lines" / "lines.jsonl"
        return [json.loads(line)[:2] for line in file.read_text().splitlines()] if file.exists() else []


def run_one(
    name: str, test: str, source: str, plugin_file: Callable[[str, str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("KIT_TOKEN", Lines.environment["KIT_TOKEN"])
    file = plugin_file(name, source.replace('"lines:', f'"{name}:'))
    case = type("Case", (Lines,), {"plugins": (file,)})()
    values = {"tmp_path": tmp_path, "monkeypatch": monkeypatch, "state": "failed", "steps": 1}
    function = getattr(case, test)
    function(**{n: values[n] for n in inspect.signature(function).parameters})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_with_a_sentence(
    fault: str, plugin_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, right, wrong, sentence = FAULTS[fault]
    assert right in SOURCE
    name, source = f"lines_{fault.replace('-', '_')}", SOURCE.replace(right, wrong.replace("\\n", "\n"))
    with pytest.raises(pytest.fail.Exception, match=re.escape(sentence)):
        run_one(name, test, source, plugin_file, tmp_path, monkeypatch)


@pytest.mark.parametrize("test", sorted({test for test, *_ in FAULTS.values()}))
def test_without_a_fault_it_passes(
    test: str, plugin_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_one("lines_whole", test, SOURCE, plugin_file, tmp_path, monkeypatch)
