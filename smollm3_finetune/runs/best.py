"""Adapters of a run beside its checkpoints: `best-N` has the lowest held-out loss so far, `last-N` is the last one.

`last-N` exists from the last step until the run has decided which of the two it publishes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.checksums import CHECKSUMS, damage, write_checksums
from smollm3_finetune.files.json import read_json, write_json
from smollm3_finetune.files.writing import whole_directory
from smollm3_finetune.model.saved_adapter import EDITABLE

BEST, LAST = "best-", "last-"
MEASURED = "measured.json"
"""In such a directory: the step, the measurement and the sample answer of the adapter."""


@dataclass(frozen=True)
class BestAdapters:
    """The directory `checkpoints` of a run, as the place of adapters."""

    path: Path

    def at(self, step: int) -> Path:
        """The adapter after `step` steps, whether or not it exists."""
        return self.path / f"{BEST}{step}"

    def save(self, step: int, write: Callable[[Path], None], measured: Mapping[str, Any]) -> None:
        """Write an adapter with `write` and what was measured; the directory appears whole."""

        def write_both(partial: Path) -> None:
            write(partial)
            write_json(partial / MEASURED, {"step": step, **measured})

        _save(self.at(step), write_both)

    def damage(self, step: int) -> str | None:
        """What is wrong with the adapter of a step; None if it is whole."""
        if not self.at(step).is_dir():
            return "it is missing"
        return damage(self.at(step)) if (self.at(step) / CHECKSUMS).exists() else f"{CHECKSUMS} is missing"

    def measured(self, step: int) -> dict[str, Any]:
        """What was measured of the adapter of a step. Raises ModelError if that is damaged."""
        found = read_json(self.at(step) / MEASURED)
        if not isinstance(found.get("held_out_loss"), float) or not isinstance(found.get("sample"), str):
            raise ModelError(f"{self.at(step) / MEASURED} is damaged: it must have held_out_loss and sample")
        return found

    def files(self, step: int) -> list[Path]:
        """The files that belong to the adapter of a step."""
        mine = (MEASURED, CHECKSUMS, *EDITABLE)
        return [p for p in sorted(self.at(step).iterdir()) if p.name not in mine]

    def steps(self) -> list[int]:
        """The steps of all adapters."""
        return [step for step, _ in self._all()]

    def keep(self, steps: Collection[int | None]) -> None:
        """Delete all adapters except those of `steps`."""
        for step, path in self._all():
            if step not in steps:
                shutil.rmtree(path, ignore_errors=True)

    def forget_after(self, step: int) -> None:
        """Delete the adapters of later steps, which a resumed run takes again."""
        self.keep([s for s in self.steps() if s <= step])

    def _all(self) -> Iterator[tuple[int, Path]]:
        return _numbered(self.path, BEST)


@dataclass(frozen=True)
class LastAdapter:
    """The directory `checkpoints` of a run, as the place of the adapter after its last step."""

    path: Path

    def at(self, step: int) -> Path:
        """The adapter after `step` steps, whether or not it exists."""
        return self.path / f"{LAST}{step}"

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write it with `write`; the directory appears whole."""
        _save(self.at(step), write)

    def delete(self) -> None:
        """Delete it: the run has published an adapter, or takes the step again."""
        for _, path in _numbered(self.path, LAST):
            shutil.rmtree(path, ignore_errors=True)


def _save(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(exist_ok=True)
    with whole_directory(path) as partial:
        write(partial)
        write_checksums(partial, without=EDITABLE)


def _numbered(directory: Path, prefix: str) -> Iterator[tuple[int, Path]]:
    """The directories `prefix` with a number, and that number."""
    for path in list(directory.glob(f"{prefix}*")) if directory.is_dir() else ():
        number = path.name.removeprefix(prefix)
        if number.isascii() and number.isdigit() and path.is_dir():
            yield int(number), path
