"""A launcher with one fault each fails the kit with a sentence that names it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.testing import LauncherConformance
from smollm3_finetune.testing import launchers as kit

SOURCE = """
import os, shlex, subprocess, threading, time
from smollm3_finetune.api import LauncherSpec, SmolLM3Error, hookimpl

@hookimpl
def smollm3_launchers():
    return [LauncherSpec(name="pair", summary="two processes", factory="pair:Pair",
                         processes=lambda options: 2, api=2)]

class Pair:
    def __init__(self, options):
        pass

    def describe(self, launch):
        return shlex.join(launch.command)

    def launch(self, launch, progress):
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
        made = [
            subprocess.Popen(launch.command, env={
                **os.environ, **launch.environment, **place, "RANK": n, "LOCAL_RANK": n,
            })
            for n in "01"
        ]
        try:
            while any(p.poll() is None for p in made) and not any(p.poll() for p in made):
                time.sleep(0.02)
        finally:
            for p in made:
                p.kill()
            for p in made:
                p.wait()
        if (bad := next((p for p in made if p.returncode), None)) is not None:
            raise SmolLM3Error(f"a process ended with exit code {bad.returncode}")
"""


class Pair(LauncherConformance):
    component = "pair"


FAILS = "test_a_failed_process_ends_all_and_is_an_error"
END = "p.kill()\n            for p in made:\n                p.wait()"
STARTS = "test_it_starts_each_process_once"
FAULTS: dict[str, tuple[str, str, str, str]] = {
    "swallows": (FAILS, "if (bad", "if False and (bad", "launch() returned although a process failed"),
    "raises": (FAILS, "raise SmolLM3Error", "raise OSError", "launch() raised OSError, not a SmolLM3Error"),
    "leaves": (FAILS, END, "threading.Thread(target=p.wait).start()", "launch() left 1 of 2 processes behind"),
    "one": (STARTS, '"01"', '"0"', "must have the ranks 0 to 1, found [0]"),
    "address": (STARTS, '"MASTER_ADDR": "localhost", ', "", "was started without MASTER_ADDR"),
    "environment": (STARTS, "**launch.environment, ", '"PYTHONPATH": launch.environment["PYTHONPATH"], ',
                    "Launch.environment are not set"),
    "short": ("test_describe_shows_the_run_and_starts_nothing", "shlex.join(launch.command)", '"two processes"',
              "does not contain the run directory"),
    "starts": ("test_describe_shows_the_run_and_starts_nothing", "return shlex.join(launch.command)",
               "self.launch(launch, None); return shlex.join(launch.command)", "describe() starts the processes"),
    "count": ("test_the_descriptor_states_the_processes", "options: 2,", "options: 0,",
              "must return a positive integer"),
    "stop": ("test_a_request_to_stop_ends_all_processes", "        finally:", "        except KeyboardInterrupt:\n"
             "            return\n        finally:", "launch() returned after a request to stop"),
}  # fmt: skip


def run_one(name: str, test: str, source: str, plugin_file: Any, tmp_path: Path) -> None:
    file = plugin_file(name, source.replace("pair:Pair", f"{name}:Pair"))
    case = type("Case", (Pair,), {"plugins": (file,)})()
    more: dict[str, Any] = {} if test.startswith("test_the_descriptor") else {"tmp_path": tmp_path}
    getattr(case, test)(**more, **({"how": "exit"} if test == FAILS else {}))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_with_a_sentence(
    fault: str, plugin_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "PATIENCE", 2.0)
    test, right, wrong, sentence = FAULTS[fault]
    assert right in SOURCE
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(pytest.fail.Exception, match=re.escape(sentence)):
        run_one(f"pair_{fault}", test, SOURCE.replace(right, wrong), plugin_file, tmp_path)


@pytest.mark.parametrize("test", sorted({test for test, *_ in FAULTS.values()}))
def test_without_a_fault_it_passes(test: str, plugin_file: Any, tmp_path: Path) -> None:
    run_one("pair_whole", test, SOURCE, plugin_file, tmp_path)
