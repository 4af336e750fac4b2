"""uv, as `uv pip --python` of this environment."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from smollm3_finetune.installing.failures import failure
from smollm3_finetune.installing.installer import Resolved, Sources, constraints_file, flat
from smollm3_finetune.installing.process import Done, run

ADDED = re.compile(r"^ [+~] (?P<name>[A-Za-z0-9._-]+)(?:==(?P<version>\S+)| @ (?P<url>\S+))", re.MULTILINE)
"""A line of a dry run: ` + name==1.0`, ` + name @ file:///path`."""


class Uv:
    name = "uv"

    def __init__(self, program: str) -> None:
        self.program = program

    def resolve(
        self, wanted: Sequence[Sequence[str]], pins: Iterable[str], sources: Sources, upgrade: Sequence[str] = ()
    ) -> list[Resolved]:
        newer = [part for name in upgrade for part in ("--upgrade-package", name)]
        done = self._install(("--dry-run", *newer, *sources.flags), wanted, list(pins))
        return [
            Resolved(name=found["name"], version=found["version"] or "", url=found["url"] or "")
            for found in ADDED.finditer(done.text)
        ]

    def stage(self, wanted: Sequence[Sequence[str]], sources: Sources, folder: Path) -> None:
        self._run("install", "--no-deps", "--target", str(folder), *sources.flags, *flat(wanted))

    def install(
        self, wanted: Sequence[Sequence[str]], pins: Iterable[str], sources: Sources, folder: Path, builds: bool
    ) -> None:
        self._install(sources.flags, wanted, list(pins))  # uv has what was staged in its cache

    def _install(self, options: Sequence[str], wanted: Sequence[Sequence[str]], pins: Sequence[str]) -> Done:
        with constraints_file(pins) as file:
            return self._run("install", "-c", file, *options, *flat(wanted), pins=pins)

    def uninstall(self, names: Sequence[str]) -> None:
        self._run("uninstall", *names)

    def shown(self, *arguments: str) -> str:
        return " ".join(("uv pip", *(a for a in arguments if a != "--yes")))

    def _run(self, command: str, *arguments: str, pins: Sequence[str] = ()) -> Done:
        done = run([self.program, "pip", command, "--python", sys.executable, *arguments])
        if done.code != 0:
            raise failure(done.text, self.name, pins)
        return done
