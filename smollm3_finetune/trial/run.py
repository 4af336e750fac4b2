"""Tries pairs in child processes, several at a time, each pair with a time limit. Imports no torch."""

from __future__ import annotations

import datetime
import json
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.compatibility.children import Child
from smollm3_finetune.compatibility.sweep import START, versions
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.registry import RegisteredComponent, Registry
from smollm3_finetune.errors import IncompatibleError, PluginError, SmolLM3Error
from smollm3_finetune.trial.results import Status, TrialReport, Tried

WORKER = "smollm3_finetune.trial.worker"
ADAPTERS = Path(__file__).with_name("adapters.json")
"""The adapters that are tried if none is named: the usual one, and one that also reads the weights. Data, as names."""
LIMIT = 180.0
"""Seconds for one pair. The first pair of a process also waits for imports, at most `START` seconds more."""
MOST_JOBS = 2

Pair = tuple[RegisteredComponent, RegisteredComponent]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried, and how."""

    quantizers: Sequence[RegisteredComponent]
    adapters: Sequence[RegisteredComponent]
    command: str
    """The command that repeats the trial."""
    device: str = "auto"
    dtype: str = "float32"
    plugins: tuple[str, ...] = ()
    no_plugins: bool = False
    jobs: int | None = None
    """Processes at a time; None: two on a CPU with two cores or more, else one."""
    limit: float = LIMIT
    worker: str = WORKER
    """The module that tries pairs, run with `python -m`."""

    def run(self, say: Callable[[str], None]) -> TrialReport:
        """Try all pairs; `say` receives a line for each one, as soon as it is known.

        Raises IncompatibleError if the device does not exist here.
        """
        began = time.monotonic()
        groups: queue.Queue[list[Pair]] = queue.Queue()
        for quantizer in self.quantizers:
            groups.put([(quantizer, adapter) for adapter in self.adapters])
        pairs = [(q, a) for q in self.quantizers for a in self.adapters]
        found: queue.Queue[tuple[Pair, Tried] | _Ready | Exception] = queue.Queue()
        stopped = threading.Event()
        jobs = min(self.jobs or default_jobs(self.device), max(groups.qsize(), 1))
        results: dict[tuple[str, str], Tried] = {}
        ready: _Ready | None = None
        with tempfile.TemporaryDirectory(prefix="smollm3-trial-") as directory:
            lanes = [_Lane(self, Path(directory), n, jobs, groups, found, stopped) for n in range(jobs)]
            for lane in lanes:
                lane.start()
            try:
                while len(results) < len(pairs):
                    event = found.get()
                    if isinstance(event, Exception):
                        raise event
                    if isinstance(event, _Ready):
                        ready = event
                        continue
                    (quantizer, adapter), tried = event
                    results[quantizer.full_name, adapter.full_name] = tried
                    title = f"{quantizer.spec.name} × {adapter.spec.name}"
                    say(f"{len(results)}/{len(pairs)} {title}: {tried.status.value} ({tried.seconds:.1f} s)")
            finally:
                stopped.set()
                for lane in lanes:
                    lane.stop()
        machine = ready.machine if ready is not None else {"device": self.device, "name": "not known"}
        return TrialReport(
            machine=machine,
            dtype=ready.dtype if ready is not None else self.dtype,
            date=datetime.date.today().isoformat(),
            command=self.command,
            seconds=round(time.monotonic() - began, 1),
            cells=[results[q.full_name, a.full_name] for q, a in pairs],
        )


@dataclass(frozen=True, kw_only=True)
class _Ready:
    machine: dict[str, Any]
    dtype: str


class _Lane(threading.Thread):
    """One child process at a time, which tries the pairs of one quantizer after the other."""

    def __init__(
        self, trial: Trial, directory: Path, number: int, jobs: int, groups: queue.Queue[list[Pair]],
        found: queue.Queue[Any], stopped: threading.Event,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.trial, self.work, self.jobs = trial, directory / str(number), jobs
        self.groups, self.found, self.stopped = groups, found, stopped
        self.child: Child | None = None
        self.work.mkdir()

    def run(self) -> None:
        try:
            while not self.stopped.is_set():
                try:
                    group = self.groups.get_nowait()
                except queue.Empty:
                    break
                for pair in group:
                    if self.stopped.is_set():  # and its process was ended
                        return
                    self.found.put((pair, self._tried(pair)))
        except Exception as e:
            self.found.put(e)
        finally:
            self.stop()

    def stop(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            child.end()

    def _tried(self, pair: Pair) -> Tried:
        """Try one pair; a process that ends or hangs is replaced for the next one."""
        quantizer, adapter = pair
        began, fresh = time.monotonic(), self.child is None
        limit = self.trial.limit + (START if fresh else 0)
        try:
            child = self.child or self._new_child()
            child.send({"quantizer": quantizer.full_name, "adapter": adapter.full_name})
            event = child.receive(max(limit - (time.monotonic() - began), 1))
            fault = child.last_words() if event is None else None
        except queue.Empty:
            event, fault = None, f"timed out after {limit:.0f} s"
        if event is None:
            self.stop()
            event = {"status": Status.FAILS.value, "sentence": fault, "steps": {}, "figures": {},
                     "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
        return Tried(
            **{**event, "status": Status(event["status"])},
            quantizer=quantizer.full_name,
            adapter=adapter.full_name,
            versions=versions(quantizer, adapter),
        )

    def _new_child(self) -> Child:
        """A new child process that has imported torch. Raises IncompatibleError if there is no such device."""
        trial = self.trial
        env = {"SMOLLM3_CACHE": str(self.work / "cache")}
        if "OMP_NUM_THREADS" not in os.environ:
            env["OMP_NUM_THREADS"] = str(max(cores() // self.jobs, 1))
        self.child = child = Child(trial.worker, self.work / "log", env)
        child.send({"plugins": trial.plugins, "no_plugins": trial.no_plugins, "device": trial.device,
                    "dtype": trial.dtype, "work": str(self.work)})  # fmt: skip
        event = child.receive(START)
        if event is not None and "error" in event:
            raise IncompatibleError(event["error"], hint=event["hint"])
        if event is not None:
            self.found.put(_Ready(machine=event["machine"], dtype=event["dtype"]))
        return child


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(device: str) -> int:
    """Two processes on a CPU; one on a GPU, whose figures would otherwise depend on the other process."""
    from smollm3_finetune.model.device import guess_device

    kind = guess_device() if device == "auto" else device
    return min(MOST_JOBS, cores()) if kind == "cpu" else 1


def chosen(
    registry: Registry, quantizers: Sequence[str], adapters: Sequence[str]
) -> tuple[list[RegisteredComponent], list[RegisteredComponent]]:
    """The components to try: those of these names, or all quantizers and the adapters of `adapters.json`.

    If none of these is installed, all adapters are tried. Raises a SmolLM3Error for a name that nobody offers.
    """
    names: list[str] = list(adapters) or json.loads(ADAPTERS.read_text(encoding="utf-8"))
    found: list[RegisteredComponent] = []
    for name in names:
        try:
            found.append(registry.find(ADAPTER, name))
        except SmolLM3Error:
            if adapters:
                raise
    every = registry.of(QUANTIZER)
    first = [registry.find(QUANTIZER, name) for name in quantizers] if quantizers else list(every)
    found = list({a.full_name: a for a in found or registry.of(ADAPTER)}.values())
    first = list({q.full_name: q for q in first}.values())
    if not first or not found:
        raise PluginError("no quantizer and adapter are active, so nothing can be tried", hint="smollm3 plugins list")
    return first, found
