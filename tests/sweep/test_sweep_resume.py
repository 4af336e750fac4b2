"""A sweep that is ended anywhere is continued: no finished trial runs again, and the adapters are the same."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_sweep import NAMES, snapshot

from smollm3_finetune.sweep.file import read_sweep

Cli = Callable[..., Any]
Edit = Callable[[str, str], None]
Status = Callable[[], dict[str, dict[str, Any]]]
PLACES = {
    ("sweep.sweep", "write_state"): (1, 4, 5),
    ("sweep.trials", "launched_report"): (1,),
    ("train.run", "check_weights"): (1,),
    ("train.run", "after_json"): (2,),
}
"""Functions, and the calls of each at which the process dies: before, in and after a trial."""
WEIGHTS = "adapter/adapter_model.safetensors"


class Killed(BaseException):
    """As a kill: no handler of the project sees it."""


def finished_trials(sweep: Path) -> dict[str, Any]:
    """The files of the finished trials, with their times of change."""
    found = sweep.iterdir() if sweep.is_dir() else ()
    return {run.name: snapshot(run) for run in found if (run / "report.json").is_file()}


def test_a_sweep_that_dies_anywhere_is_continued(
    cli: Cli,
    finished: Path,
    fresh: Path,
    launched: list[str],
    edit: Edit,
    monkeypatch: pytest.MonkeyPatch,
    status: Status,
) -> None:
    edit("[2, 4, 8]", "[8]")
    edit("report: false", "report: false, save_every: 1")
    calls: Counter[tuple[str, str]] = Counter()
    died: list[tuple[tuple[str, str], int]] = []

    def fragile(place: tuple[str, str]) -> Callable[..., Any]:
        whole = getattr(import_module(f"smollm3_finetune.{place[0]}"), place[1])

        def call(*args: Any, **values: Any) -> Any:
            calls[place] += 1
            if calls[place] in PLACES[place]:
                died.append((place, calls[place]))
                raise Killed
            return whole(*args, **values)

        return call

    for module, name in PLACES:
        monkeypatch.setattr(f"smollm3_finetune.{module}.{name}", fragile((module, name)))
    done: dict[str, Any] = {}
    for _ in range(20):
        try:
            result = cli("sweep", "resume" if Path("found/sweep.json").exists() else "run", "s.yaml")
        except Killed:
            done |= finished_trials(Path("found"))
            continue
        assert result.code == 0, result.stderr
        break
    assert sorted(died) == sorted((place, call) for place, numbers in PLACES.items() for call in numbers)
    assert done
    assert {name: snapshot(Path("found") / name) for name in done} == done
    assert {trial["state"] for trial in status().values()} == {"finished"}
    assert {p.name for p in Path("found").iterdir()} == {"sweep.json", *NAMES[4:]}
    for name in NAMES[4:]:
        assert (Path("found") / name / WEIGHTS).read_bytes() == (finished / "found" / name / WEIGHTS).read_bytes()


def sweep_command(verb: str, log: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "smollm3_finetune.main", "sweep", verb, "s.yaml"]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen[bytes], *, all_of_them: bool) -> None:
    """Kill the sweep with -9; its trial too, or only the sweep, whose trial then ends by itself."""
    children = psutil.Process(process.pid).children(recursive=True)
    for one in [process, *(children if all_of_them else [])]:
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            os.kill(one.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.long
def test_six_trials_are_resumed_after_kill_9_at_random_moments(finished: Path, fresh: Path, edit: Edit) -> None:
    """Each trial is a process of its own here. The trials of `finished` were run in one process, without a kill."""
    edit("report: false", "report: false, save_every: 1")
    moments = random.Random()
    found, kills = Path("found"), 0
    done: dict[str, Any] = {}
    with open("log", "ab") as log:
        while True:
            process = sweep_command("resume" if (found / "sweep.json").exists() else "run", log)
            try:
                code = process.wait(timeout=moments.uniform(5, 60) if kills < 5 else None)
            except subprocess.TimeoutExpired:
                kill(process, all_of_them=kills % 2 == 0)
                kills += 1
                done |= {n: files for n, files in finished_trials(found).items() if n not in done}
                continue
            assert code == 0, Path("log").read_text(encoding="utf-8")
            break
    assert kills
    assert {name: snapshot(found / name) for name in done} == done
    names = [trial.name for trial in read_sweep("s.yaml").trials]
    assert sorted(p.name for p in found.iterdir()) == sorted([*names, "sweep.json"])
    text = Path("log").read_text(encoding="utf-8")
    for name in names:
        assert text.count(f"{name}: finished, held-out loss") <= 1, text
        assert (found / name / WEIGHTS).read_bytes() == (finished / "found" / name / WEIGHTS).read_bytes()


def test_a_sweep_waits_for_the_trial_that_a_killed_sweep_left_behind(
    cli: Cli, copied: Path, launched: list[str], edit: Edit
) -> None:
    """Another process holds the directory of a trial for a moment; then it is finished, and is not run again."""
    report = copied / NAMES[0] / "report.json"
    content = report.read_bytes()
    report.unlink()
    holds = (
        "import sys, time; from pathlib import Path; from smollm3_finetune.files.locks import locked\n"
        "run = Path(sys.argv[1])\n"
        "with locked(run / '.smollm3-lock', 'busy', remove=True):\n"
        "    print('held', flush=True); sys.stdin.read(1)\n"
        "    (run / 'report.json').write_bytes(bytes.fromhex(sys.argv[2]))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", holds, str(copied / NAMES[0]), content.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == b"held\n"
    with child:
        edit("[2, 4, 8]", "[2]")
        from smollm3_finetune.sweep import run

        said: list[float] = []

        def wait(seconds: float) -> None:
            said.append(seconds)
            if len(said) == 2:
                assert child.stdin is not None
                child.stdin.write(b"x")
                child.stdin.flush()
            time.sleep(seconds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "pause", wait)
            result = cli("sweep", "resume", "s.yaml")
    assert result.code == 0, result.stderr
    assert f"trial {NAMES[0]} is still being trained by another process: waiting" in result.stderr
    assert len(said) >= 2 and launched == []
