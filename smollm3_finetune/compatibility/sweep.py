"""Runs pairs in child processes, each pair with a time limit, and returns their results. Imports no torch."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.compatibility.children import Child
from smollm3_finetune.compatibility.results import Result, Use
from smollm3_finetune.compatibility.small_model import write_small_model
from smollm3_finetune.components.discovery import CORE_DISTRIBUTION
from smollm3_finetune.components.registry import RegisteredComponent
from smollm3_finetune.components.requirements import installed_version
from smollm3_finetune.version import __version__

LIMIT = 120.0
"""Seconds for one pair. The first pair of a process also waits for imports, at most `START` seconds more."""
START = 120.0
LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One pair to measure, for one purpose."""

    quantizer: RegisteredComponent
    adapter: RegisteredComponent
    purpose: Use
    force: bool = False
    """The pair is refused, but is run anyway."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the adapter."""
    model: Path | None = None
    """The checkpoint to measure on; None: the small random model."""

    @property
    def title(self) -> str:
        return f"{self.quantizer.spec.name} × {self.adapter.spec.name} {self.purpose.value}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How pairs are measured."""

    work: Path
    """A directory for the small model and for temporary files."""
    command: str
    """The command, stored in each result, that repeats it; `{quantizer}` and `{adapter}` are replaced by names."""
    device: str = "cpu"
    plugins: tuple[str, ...] = ()
    no_plugins: bool = False
    limit: float = LIMIT
    worker: str = "smollm3_finetune.compatibility.worker"
    """The module that measures pairs, run with `python -m`."""

    def run(
        self, pairs: Sequence[Pair], skipped: Callable[[Pair, str], None] | None = None
    ) -> Iterator[tuple[Pair, Result, float]]:
        """Yield each pair with its result and its duration in seconds, as soon as it is measured.

        `skipped` is called with a pair that cannot be measured as it is and the reason, such as an option that must be
        set; without it, such a pair fails.
        """
        rest = list(pairs)
        while rest:
            done = 0
            for pair, answer, seconds in self._batch(rest):
                done += 1
                if skipped is not None and answer.get("skipped"):
                    skipped(pair, answer["fault"])
                    continue
                yield pair, self._result(pair, answer), seconds
            rest = rest[done:]

    def _batch(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Mapping[str, Any], float]]:
        """Measure pairs in one child process. If it dies or hangs, the pair that it was measuring is the last one."""
        small = self.work / "model"
        if not (small / "config.json").exists():
            write_small_model(small)
        job = {
            "plugins": self.plugins,
            "no_plugins": self.no_plugins,
            "device": self.device,
            "work": str(self.work),
            "pairs": [
                {
                    "quantizer": p.quantizer.full_name,
                    "adapter": p.adapter.full_name,
                    "purpose": p.purpose.value,
                    "options": dict(p.options),
                    "force": p.force,
                    "model": str(p.model or small),
                }
                for p in pairs
            ],
        }
        child = Child(self.worker, self.work / "worker.log")
        child.send(job, last=True)
        index, began, wait = 0, time.monotonic(), START + self.limit
        try:
            while index < len(pairs):
                try:
                    event = child.receive(wait)
                except queue.Empty:
                    yield pairs[index], _failure(f"timed out after {wait:.0f} s"), time.monotonic() - began
                    return
                if event is None:
                    yield pairs[index], _failure(child.last_words()), time.monotonic() - began
                    return
                if "begins" in event:
                    began, wait = time.monotonic(), self.limit
                else:
                    yield pairs[index], event, time.monotonic() - began
                    index += 1
        finally:
            child.end()

    def _result(self, pair: Pair, answer: Mapping[str, Any]) -> Result:
        fault = answer["fault"]
        return Result(
            quantizer=pair.quantizer.full_name,
            adapter=pair.adapter.full_name,
            purpose=pair.purpose,
            device=self.device.partition(":")[0],
            date=datetime.date.today().isoformat(),
            command=self.command.format(quantizer=pair.quantizer.full_name, adapter=pair.adapter.full_name),
            versions=versions(pair.quantizer, pair.adapter),
            holds=fault is None,
            note=fault,
            figures={name: _rounded(value) for name, value in answer["figures"].items()},
            options=pair.options,
        )


def _rounded(value: float) -> float | None:
    """An error rounded to two digits, a count unchanged, None for a value that is not finite."""
    if isinstance(value, int):
        return value
    return float(f"{value:.2g}") if math.isfinite(value) else None


def _failure(fault: str) -> dict[str, Any]:
    return {"figures": {}, "fault": fault}


def versions(*components: RegisteredComponent) -> dict[str, str]:
    """Versions on which a result depends: core, the plugins, torch, transformers, and requirements that use torch."""
    from packaging.utils import canonicalize_name

    found = {CORE_DISTRIBUTION: __version__}
    wanted = set(LIBRARIES)
    for component in components:
        found[component.distribution] = component.version
        if component.distribution != CORE_DISTRIBUTION:
            wanted |= _required(component.distribution)
        wanted |= _names(component.spec.requires.distributions)
    for name in sorted(wanted):
        counts = name in LIBRARIES or "torch" in _required(name)
        if counts and (version := installed_version(name)) is not None:
            found.setdefault(canonicalize_name(name), version)
    return found


def _required(distribution: str) -> set[str]:
    """The names of the distributions that a distribution requires, without extras."""
    try:
        return _names(importlib.metadata.requires(distribution) or ())
    except importlib.metadata.PackageNotFoundError:
        return set()


def _names(requirements: Sequence[str]) -> set[str]:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    names = set()
    for text in requirements:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            names.add(str(canonicalize_name(wanted.name)))
    return names
