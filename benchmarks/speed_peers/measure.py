"""One run of a contestant in a child process: its marks, its processor time, and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from speed_peers.contestants import BARE, FLAT, FLOAT32, HUGE, PACKED, SETTINGS, command, own_name
from speed_peers.job import Job

SAMPLES = 0.05
"""Seconds between two samples of a contestant's memory."""
GB = 1e9
OUTSIDE = "outside"


@dataclass(frozen=True)
class Result:
    """The figures of one run of one contestant. Seconds are processor time (user and system), except `*_wall`."""

    name: str
    tokens: int
    """Tokens without padding, as counted by the contestant itself."""
    losses: list[float]
    steps: int
    step_tokens: int
    """Tokens without padding in all steps except the first."""
    step_positions: int
    """Positions computed in these steps, padding included."""
    step_cpu: float
    """From the end of the first step to the end of the last."""
    step_wall: float
    first_cpu: float
    """From the start of the process to the end of its first step."""
    first_wall: float
    whole_cpu: float
    whole_wall: float
    floor_gb: float
    """Anonymous memory when the optimizer is created: imports and weights."""
    peak_gb: float
    """Peak anonymous memory of the process and its children, sampled."""
    profile: dict[str, float] = field(default_factory=dict)
    """If profiled: seconds in each operation of torch, and outside of them at the key `OUTSIDE`, in all steps except
    the first and the last."""
    profile_tokens: int = 0
    """Tokens without padding in these steps."""

    @property
    def speed(self) -> float:
        """Tokens without padding per second of processor time, in all steps except the first."""
        return self.step_tokens / self.step_cpu


class Sampler(threading.Thread):
    """Samples the peak anonymous memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.over = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(SAMPLES):
            self.peak = max(self.peak, sum(map(_anonymous, _tree(self.pid))))


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in _tree(int(child)))]


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


NOT_PASSED_ON = ("FORCE_COLOR", "SPEED_PROFILE", "SMOLLM3_TEST_DATA", "THP_MEM_ALLOC_ENABLE")


def environment(name: str, directory: Path, threads: int) -> dict[str, str]:
    """The environment of a contestant: empty caches, no network, fixed threads, marks, and the suffixes of its name."""
    here = Path(__file__).resolve().parent
    path = [str(here / "marks"), str(here.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **{k: v for k, v in os.environ.items() if k not in NOT_PASSED_ON},
        **({"THP_MEM_ALLOC_ENABLE": "1"} if name.endswith(HUGE) else {}),
        **({"SPEED_TRAINED": "float32"} if name.endswith(FLOAT32) else {}),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "SPEED_MARKS": str(directory / "marks.jsonl"),
        "SPEED_ROOT": str(os.getpid()),
        "SMOLLM3_CACHE": str(directory / "cache"),
        "HF_HOME": str(directory / "hf"),
        "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",
    }


@dataclass(frozen=True)
class Observed:
    """A finished run of a contestant. Its output is deleted when the context of `observed` ends."""

    name: str
    output: Path
    marks: list[dict[str, Any]]
    began: float
    took: float
    cpu: float
    peak: int

    def of(self, what: str) -> list[dict[str, Any]]:
        """The marks of one kind, in order."""
        return [m for m in self.marks if m["what"] == what]

    def logs(self) -> list[dict[str, Any]]:
        return [m["logs"] for m in self.of("log")]

    def fields(self) -> dict[str, Any]:
        """The fields of a result that do not depend on the rows."""
        steps = self.of("step")
        first, last = steps[0], steps[-1]
        return {
            "name": self.name,
            "steps": len(steps),
            "step_positions": sum(s["positions"] for s in steps[1:]),
            "step_cpu": last["cpu"] - first["cpu"],
            "step_wall": last["time"] - first["time"],
            "first_cpu": first["cpu"],
            "first_wall": first["time"] - self.began,
            "whole_cpu": self.cpu,
            "whole_wall": self.took,
            "floor_gb": self.of("optimizer")[0]["anonymous"] / GB,
            "peak_gb": self.peak / GB,
            "profile": _profile(self.of("profile")),
        }


@contextmanager
def observed(
    name: str, command: Callable[[Path], list[str]], threads: int, *,
    profiled: bool = False, more: Mapping[str, str] | None = None,
) -> Iterator[Observed]:  # fmt: skip
    """Run the command that writes to a given path, which does not exist. `more`: variables of its environment.

    Raises SystemExit, with the end of the contestant's output, if it fails.
    """
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        output = directory / "output"
        with (directory / "printed").open("w+") as printed:
            began = time.time()
            child = subprocess.Popen(
                command(output),
                env={
                    **environment(name, directory, threads),
                    **({"SPEED_PROFILE": "1"} if profiled else {}),
                    **(more or {}),
                },
                cwd=directory, stdout=printed, stderr=subprocess.STDOUT,
            )  # fmt: skip
            sampler = Sampler(child.pid)
            sampler.start()
            _, status, used = os.wait4(child.pid, 0)
            took = time.time() - began
            child.returncode = os.waitstatus_to_exitcode(status)
            sampler.over.set()
            sampler.join()
            if child.returncode:
                printed.seek(0)
                raise SystemExit(f"{name} ended with code {child.returncode}:\n{printed.read()[-4000:]}")
        marks = [json.loads(line) for line in (directory / "marks.jsonl").read_text().splitlines()]
        yield Observed(name, output, marks, began, took, used.ru_utime + used.ru_stime, sampler.peak)


def run(name: str, job: Job, lengths: list[int], threads: int, python_trl: Path, *, profiled: bool = False) -> Result:
    """Run one contestant and measure it.

    Profiling takes time, so the speed of a profiled run must not be compared with others. Raises SystemExit, with the
    end of the contestant's output, if it fails.
    """
    made = partial(command, name, job, python_trl=python_trl)
    with observed(name, made, threads, profiled=profiled) as found:
        return _result(job, lengths, found)


def _result(job: Job, lengths: list[int], found: Observed) -> Result:
    steps, profiled, fields = found.of("step"), found.of("profile"), found.fields()
    alone = own_name(found.name)
    tokens, losses = _own_account(alone, found.output, found.logs())
    positions = fields["step_positions"]
    real = positions if alone in FLAT else sum(lengths[job.batch :])
    if alone in FLAT and alone not in PACKED and positions != sum(lengths[job.batch :]):
        raise SystemExit(f"{found.name} computed {positions} positions, but the rows have {sum(lengths[job.batch :])}")
    return Result(
        **fields,
        tokens=tokens,
        losses=losses,
        step_tokens=real,
        profile_tokens=sum(
            steps[m["step"]]["positions"] if alone in FLAT else sum(lengths[m["step"] * job.batch :][: job.batch])
            for m in profiled
        ),
    )


def _profile(marks: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for mark in marks:
        inside = sum(mark["ops"].values())
        for operation, seconds in (*mark["ops"].items(), (OUTSIDE, mark["took"] - inside)):
            found[operation] = found.get(operation, 0.0) + seconds
    return found


def _own_account(name: str, output: Path, logs: list[dict[str, Any]]) -> tuple[int, list[float]]:
    """The number of tokens that the contestant reports, and its loss at each step."""
    if name == BARE:
        about = json.loads((output / "bare.json").read_text())
        return about["tokens"], about["losses"]
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    if name in SETTINGS:
        return json.loads((output / "report.json").read_text())["tokens"], losses
    counted = [e.get("num_tokens", e.get("num_input_tokens_seen")) for e in logs if "loss" in e]
    return round(counted[-1]), losses
