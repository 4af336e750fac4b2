"""Conformance tests for launchers: the processes that they start, what happens when one fails, and requests to stop.

from smollm3_finetune.testing import LauncherConformance

class TestPods(LauncherConformance):
    component = "pods"
    options = {"pods": 2}
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest

from smollm3_finetune.api import Launch, Sharding, Submitted
from smollm3_finetune.checks.calls import environments
from smollm3_finetune.components.kinds import LAUNCHER
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.model.device import KINDS
from smollm3_finetune.progress import Silent
from smollm3_finetune.testing.conformance import Conformance, demand, fail, outcome, plugin_path, skip

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MARK = "LAUNCHER_CONFORMANCE"
PROBE = """
import json, os, signal, sys, time
from pathlib import Path

def work(run, observer=None):
    run = Path(run)
    job = json.loads((run / "job.json").read_text())
    rank = int(os.environ.get("RANK") or 0)
    about = {name: os.environ.get(name) for name in job["names"]}
    found = run / f"process-{rank}-{os.getpid()}.json"
    found.with_suffix(".part").write_text(json.dumps({**about, "pid": os.getpid()}))
    found.with_suffix(".part").rename(found)
    if observer is not None:
        observer.measured(1, {"loss": 1.0})
    if job["how"] != "end":
        while len(list(run.glob("process-*.json"))) < job["processes"]:
            time.sleep(0.05)
        if job["how"] == "kill" and rank == job["processes"] - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if job["how"] == "exit" and rank == job["processes"] - 1:
            os._exit(3)
        if os.environ.get("SMOLLM3_ATTACHED"):
            while os.read(0, 1):
                pass
        else:
            end = time.monotonic() + 120
            while time.monotonic() < end and (observer is None or observer.measured(1, {"loss": 1.0})):
                time.sleep(0.2)
    return {"run": str(run)} if rank == 0 else None

if __name__ == "__main__":
    work(sys.argv[1])
"""
"""The program of a launched process: it writes which process it is; then it ends, fails, or waits to be stopped."""
LIGHT = """
import json, sys
from smollm3_finetune.checks.calls import environments
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import LAUNCHER
from smollm3_finetune.components.selection import choose
from smollm3_finetune.errors import SmolLM3Error
files, name, options = json.loads(sys.argv[1])
chosen = choose(discover(PluginSelection(files=tuple(files))), LAUNCHER, name, options)
before = {"torch", "transformers", "ray"} & {m.split(".")[0] for m in sys.modules}
for call in (chosen.spec.processes, chosen.spec.sharding, chosen.spec.joins, chosen.spec.device):
    if call is not None:
        call(chosen.options)
if chosen.spec.check is not None:
    for env in environments():
        try:
            chosen.spec.check(chosen.options, env)
        except SmolLM3Error:
            pass
print(json.dumps(sorted(({m.split(".")[0] for m in sys.modules} & {"torch", "transformers", "ray"}) | before)))
"""
PATIENCE = 60.0
"""Seconds until processes that must end have ended."""


class LauncherConformance(Conformance):
    """Subclass it, name the launcher and set options that start two processes on this machine."""

    kind = LAUNCHER
    environment: ClassVar[Mapping[str, str]] = {}
    """More variables that the launcher needs in a test."""
    submits: ClassVar[bool] = False
    """Whether a test may submit a job: only if the queue is a stand-in."""

    # --------------------------------------------------------------------------------------- parts

    @property
    def processes(self) -> int:
        """The processes of a run with the options of the class; at least one if the number may change."""
        chosen = self.choose()
        found = 1 if chosen.spec.processes is None else chosen.spec.processes(chosen.options)
        return found or 1

    def launcher(self) -> Any:
        return self.choose().create()

    def prepared(self, directory: Path, how: str = "end") -> Launch:
        """A launch of a small program in a new directory: its processes `end`, `exit` with an error, or `wait`."""
        run = directory / "run"
        run.mkdir(exist_ok=True)
        for file in run.glob("process-*"):
            file.unlink()
        names = [*VARIABLES, MARK]
        (run / "job.json").write_text(json.dumps({"how": how, "processes": self.processes, "names": names}))
        (directory / "launched_probe.py").write_text(PROBE)
        path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
        return Launch(
            run=run,
            command=(sys.executable, str(directory / "launched_probe.py"), str(run)),
            environment={"PYTHONPATH": path, MARK: "set", **self.environment},
            device="cpu",
            name="run",
            worker="launched_probe:work",
        )

    def started(self, launch: Launch) -> list[dict[str, Any]]:
        """What the processes wrote, by rank."""
        found = [json.loads(file.read_text()) for file in launch.run.glob("process-*.json")]
        return sorted(found, key=lambda one: int(one["RANK"] or 0))

    def waiting(self) -> None:
        """Skip a test of processes that the launcher only submits."""
        if not self.spec().waits:
            skip("it submits a job, which runs elsewhere")

    def check_gone(self, launch: Launch) -> None:
        """Fail the test if a process of the launch is left."""
        pids = [one["pid"] for one in self.started(launch)]
        deadline = time.monotonic() + PATIENCE
        while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        demand(not left, f"launch() left {len(left)} of {len(pids)} processes behind")

    # --------------------------------------------------------------------------------------- descriptor

    def test_the_descriptor_states_the_processes(self) -> None:
        chosen = self.choose()
        spec, options = chosen.spec, chosen.options
        if spec.processes is not None:
            found = spec.processes(options)
            demand(
                found is None or (type(found) is int and found > 0),
                f"processes(options) must return a positive integer or None, not {found!r}",
            )
        if spec.sharding is not None:
            found = spec.sharding(options)
            known = get_args(Sharding)
            demand(found in known, f"sharding(options) must return one of {', '.join(known)}, not {found!r}")
        if spec.device is not None:
            found = spec.device(options)
            demand(found is None or found in KINDS, f"device(options) must name a device type or None, not {found!r}")
        if spec.joins is not None:
            found = spec.joins(options)
            demand(isinstance(found, bool), f"joins(options) must return True or False, not {found!r}")

    def test_a_check_refuses_with_a_hint(self) -> None:
        chosen = self.choose()
        if chosen.spec.check is None:
            skip("it has no check")
        for env in environments():
            _, error = outcome(lambda e=env: chosen.spec.check(chosen.options, e))
            if isinstance(error, SmolLM3Error):
                demand(error.hint is not None, f"check() refuses without a hint: {error.message}")
            elif error is not None:
                fail(f"check() raises {type(error).__name__}, not a SmolLM3Error: {error}")

    def test_planning_imports_nothing_heavy(self) -> None:
        """`processes`, `sharding`, `joins`, `device` and `check` are called while a run is planned."""
        files = [str(plugin_path(type(self), p)) for p in self.plugins]
        job = json.dumps([files, self.component, dict(self.options)])
        done = subprocess.run([sys.executable, "-c", LIGHT, job], capture_output=True, text=True, check=False)
        demand(done.returncode == 0, f"the functions of the descriptor fail: {done.stderr[-300:]}")
        heavy = json.loads(done.stdout.splitlines()[-1])
        demand(not heavy, f"the functions of the descriptor import {', '.join(heavy)}")

    def test_describe_shows_the_run_and_starts_nothing(self, tmp_path: Path) -> None:
        launch = self.prepared(tmp_path)
        first, second = self.launcher().describe(launch), self.launcher().describe(launch)
        demand(isinstance(first, str) and bool(first.strip()), "describe() must return the text of a command or a job")
        demand(first == second, "describe() returns another text for the same launch")
        demand(str(launch.run) in first, "describe() does not contain the run directory")
        time.sleep(0.2)
        demand(not self.started(launch), "describe() starts the processes")

    def test_a_launch_can_be_pickled(self, tmp_path: Path) -> None:
        launch = self.prepared(tmp_path)
        demand(pickle.loads(pickle.dumps(launch)) == launch, "a launch changes when it is pickled")

    # --------------------------------------------------------------------------------------- processes

    def test_it_starts_each_process_once(self, tmp_path: Path) -> None:
        self.waiting()
        launch = self.prepared(tmp_path)
        result, error = outcome(lambda: self.launcher().launch(launch, Silent()))
        if error is not None:
            fail(f"launch() failed: {type(error).__name__}: {error}")
        demand(result is None, "launch() must return None after it waited for the processes")
        found, count = self.started(launch), self.processes
        ranks = [int(one["RANK"] or 0) for one in found]
        demand(ranks == list(range(count)), f"{count} processes must have the ranks 0 to {count - 1}, found {ranks}")
        for one in found:
            missing = [n for n in VARIABLES if one[n] is None and count > 1]
            demand(not missing, f"process {one['RANK']} was started without {', '.join(missing)}")
            demand(count == 1 or one["WORLD_SIZE"] == str(count), f"WORLD_SIZE is {one['WORLD_SIZE']}, not {count}")
            demand(one[MARK] == "set", "the variables of Launch.environment are not set in the processes")
        self.check_gone(launch)

    @pytest.mark.parametrize("how", ["exit", "kill"])
    def test_a_failed_process_ends_all_and_is_an_error(self, tmp_path: Path, how: str) -> None:
        self.waiting()
        launch = self.prepared(tmp_path, how)
        _, error = outcome(lambda: self.launcher().launch(launch, Silent()))
        demand(error is not None, "launch() returned although a process failed")
        demand(
            isinstance(error, SmolLM3Error),
            f"launch() raised {type(error).__name__}, not a SmolLM3Error, when a process failed: {error}",
        )
        demand("Traceback" not in str(error) and "\n" not in getattr(error, "message", ""),
               f"the error must be one sentence, but is: {error}")  # fmt: skip
        self.check_gone(launch)

    def test_the_same_launch_starts_again(self, tmp_path: Path) -> None:
        """After a failure, the launch is started again, unchanged."""
        self.waiting()
        launch = self.prepared(tmp_path, "exit")
        outcome(lambda: self.launcher().launch(launch, Silent()))
        again = self.prepared(tmp_path)
        demand(again == launch, "the launch has changed")
        _, error = outcome(lambda: self.launcher().launch(launch, Silent()))
        demand(error is None, f"the second launch() failed: {error}")
        demand(len(self.started(launch)) == self.processes, "the second launch() did not start every process")

    def test_a_request_to_stop_ends_all_processes(self, tmp_path: Path) -> None:
        self.waiting()
        launch = self.prepared(tmp_path, "wait")
        with _interrupted_after(launch.run, self.processes):
            try:
                self.launcher().launch(launch, Silent())
            except KeyboardInterrupt:
                stopped = True
            except SmolLM3Error as e:
                fail(f"launch() raised {type(e).__name__} after a request to stop, which must pass: {e}")
            else:
                stopped = False
        demand(stopped, "launch() returned after a request to stop, which must pass as KeyboardInterrupt")
        self.check_gone(launch)

    def test_a_submitted_job_is_described(self, tmp_path: Path) -> None:
        if self.spec().waits:
            skip("it waits for the end of the run")
        if not self.submits:
            skip("it submits a job: set submits = True with a stand-in for the queue")
        submitted, error = outcome(lambda: self.launcher().launch(self.prepared(tmp_path), Silent()))
        demand(error is None, f"launch() failed: {error}")
        demand(
            isinstance(submitted, Submitted), "launch() must return Submitted, because the descriptor has waits=False"
        )
        assert isinstance(submitted, Submitted)
        demand(bool(submitted.says.strip()), "Submitted.says is empty")


@contextlib.contextmanager
def _interrupted_after(run: Path, processes: int) -> Iterator[None]:
    """Inside the context, this process is interrupted once, when all processes of the run have started.

    A shell starts its background jobs with SIGINT ignored, and so are the tests in one of them: the default handler is
    installed meanwhile.
    """
    done = threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        deadline = time.monotonic() + PATIENCE
        while len(list(run.glob("process-*.json"))) < processes and time.monotonic() < deadline:
            if done.wait(0.05):
                return
        if not done.wait(0.5):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


def runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
