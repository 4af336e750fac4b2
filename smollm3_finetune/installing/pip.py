"""pip of this environment, as `python -m pip`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.version import Version

from smollm3_finetune.errors import MissingRequirementError
from smollm3_finetune.installing.environment import python
from smollm3_finetune.installing.failures import failure, unreachable
from smollm3_finetune.installing.installer import Resolved, Sources, constraints_file, flat
from smollm3_finetune.installing.process import Done, run

LOWEST = "22.2"
"""The first pip that resolves without installing and writes a report."""
START = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
"""Starts pip so that it can be interrupted and cleans up, even if this process was started in the background."""


class Pip:
    name = "pip"

    def __init__(self) -> None:
        version = importlib.metadata.version("pip")
        if Version(version) < Version(LOWEST):
            raise MissingRequirementError(f"pip {version} is too old: this needs pip {LOWEST} or later",
                                          hint=f"{python()} -m pip install --upgrade pip")  # fmt: skip

    def resolve(
        self, wanted: Sequence[Sequence[str]], pins: Iterable[str], sources: Sources, upgrade: Sequence[str] = ()
    ) -> list[Resolved]:
        newer = ["--upgrade", "--upgrade-strategy", "only-if-needed"] if upgrade else []
        with tempfile.TemporaryDirectory(prefix="smollm3-install-") as work:
            report = Path(work, "report.json")
            options = ("--dry-run", "--report", str(report), *newer, *sources.flags)
            done = self._install(options, wanted, list(pins))
            found = json.loads(report.read_text(encoding="utf-8"))["install"]
        if upgrade and not found and (error := unreachable(done.text)) is not None:
            raise error  # pip only warns, and keeps what is installed
        return [
            Resolved(
                name=one["metadata"]["name"],
                version=one["metadata"]["version"],
                requires=tuple(one["metadata"].get("requires_dist", ())),
                url=one["download_info"]["url"],
            )
            for one in found
        ]

    def stage(self, wanted: Sequence[Sequence[str]], sources: Sources, folder: Path) -> None:
        self._run("wheel", "--no-deps", "--wheel-dir", str(folder), *sources.flags, *flat(wanted))

    def install(
        self, wanted: Sequence[Sequence[str]], pins: Iterable[str], sources: Sources, folder: Path, builds: bool
    ) -> None:
        only = sources.flags if builds else ["--no-index"]
        self._install((*only, "--find-links", str(folder)), wanted, list(pins))

    def _install(self, options: Sequence[str], wanted: Sequence[Sequence[str]], pins: Sequence[str]) -> Done:
        with constraints_file(pins) as file:
            return self._run("install", "-c", file, *options, *flat(wanted), pins=pins)

    def uninstall(self, names: Sequence[str]) -> None:
        self._run("uninstall", "--yes", *names)

    def shown(self, *arguments: str) -> str:
        return " ".join(("pip", *arguments))

    def _run(self, *arguments: str, pins: Sequence[str] = ()) -> Done:
        retries = {} if "PIP_RETRIES" in os.environ else {"PIP_RETRIES": "2"}
        done = run([sys.executable, "-P", "-c", START, *arguments], **retries)
        if done.code != 0:
            raise failure(done.text, self.name, pins)
        return done
