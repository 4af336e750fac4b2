"""The checkpoints of a run: written whole, checked by their checksums, the newest whole one found, old ones deleted."""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.files.checksums import CHECKSUMS, damage, write_checksums
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.partial import PARTIAL
from smollm3_finetune.files.writing import publish_directory
from smollm3_finetune.runs.best import BestAdapters, LastAdapter
from smollm3_finetune.runs.measurements import Measurements

STATE = "trainer_state.json"
NEEDED = (STATE, "optimizer.pt", "scheduler.pt")
CALLBACK = "RunCallback"
"""The name of the training callback, under which the Trainer saves its state."""
DAMAGED = "damaged-"
"""Prefix of a checkpoint that was found damaged, after the run continued from an earlier one."""


@dataclass(frozen=True)
class Checkpoint:
    """A directory that a run can continue from: `checkpoint-N`, or the adapter after the last step (`only_adapter`)."""

    path: Path
    step: int
    """Optimizer steps taken."""

    @classmethod
    def of(cls, path: Path) -> Checkpoint | None:
        """The checkpoint in a directory; None if its name is another."""
        number = path.name.removeprefix("checkpoint-")
        whole = path.name != number and number.isascii() and number.isdigit() and len(number) < 16
        return cls(path, int(number)) if whole and path.is_dir() else None

    @property
    def only_adapter(self) -> bool:
        """Whether this is the adapter after the last step, from which no more steps can be taken."""
        return Checkpoint.of(self.path) is None

    def damage(self) -> str | None:
        """The first file that is missing, truncated or changed, and what is wrong with it; None for a whole checkpoint.

        Every file is read and compared with its checksum. Checkpoints of versions that wrote no checksums are examined
        as far as possible without reading tensors.
        """
        missing = next((name for name in NEEDED if not (self.path / name).is_file()), None)
        if missing is not None:
            return f"{missing} is missing"
        if (self.path / CHECKSUMS).exists():
            return damage(self.path)
        return _visible_damage(self.path)

    @property
    def tokens(self) -> int:
        """The tokens that the run had seen; 0 if the checkpoint does not say."""
        return self._count("num_input_tokens_seen") or 0

    @property
    def planned_steps(self) -> int | None:
        """The steps that the whole run was to take when the checkpoint was saved; None if it does not say."""
        return self._count("max_steps")

    @property
    def measurements(self) -> Measurements:
        """The held-out losses up to this step; empty if the checkpoint does not say."""
        try:
            return Measurements.from_json(self._attributes()["measurements"]).until(self.step)
        except (OSError, ValueError, KeyError, TypeError):
            return Measurements()

    @property
    def draws(self) -> bool | None:
        """Whether the steps drew random numbers; None if the checkpoint does not say."""
        return self._flag("draws")

    @property
    def counted(self) -> bool | None:
        """Whether the loss was divided by the number of terms in a step; None if the checkpoint does not say."""
        return self._flag("counted")

    @property
    def rounds(self) -> bool | None:
        """Whether quantized layers round activations; None if the checkpoint does not say."""
        return self._flag("rounds")

    def _flag(self, name: str) -> bool | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            value = self._attributes()[name]
            return value if isinstance(value, bool) else None
        return None

    def _attributes(self) -> dict[str, Any]:
        """What the callback saved. Raises an exception if there is nothing, or if somebody damaged it."""
        found: dict[str, Any] = load_json(self.path / STATE)["stateful_callbacks"][CALLBACK]["attributes"]
        return found

    def _count(self, name: str) -> int | None:
        """A number in the state of the Trainer; None if there is none, for example because somebody edited it."""
        try:
            value = load_json(self.path / STATE)[name]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Checkpoints:
    """The directory `checkpoints` of a run."""

    path: Path

    @property
    def partial(self) -> Path:
        """The directory in which the next checkpoint is written, before it is renamed."""
        return self.path / f"{PARTIAL}checkpoint"

    def at(self, step: int) -> Path:
        """The path of the checkpoint after `step` steps, whether or not it exists."""
        return self.path / f"checkpoint-{step}"

    def all(self) -> list[Checkpoint]:
        """Every checkpoint, the oldest first, damaged ones too."""
        found = map(Checkpoint.of, self.path.iterdir() if self.path.is_dir() else ())
        return sorted((c for c in found if c is not None), key=lambda c: c.step)

    def newest_whole(self, damaged: Callable[[Checkpoint, str], None]) -> Checkpoint | None:
        """The newest checkpoint without damage; `damaged` is called with each newer one and its damage."""
        for checkpoint in reversed(self.all()):
            found = checkpoint.damage()
            if found is None:
                return checkpoint
            damaged(checkpoint, found)
        return None

    @contextlib.contextmanager
    def unfinished(self) -> Iterator[None]:
        """Inside the context, `partial` exists; a leftover of a killed process is deleted first."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.path.mkdir(exist_ok=True)  # not its parent: a run whose directory was deleted must not appear again
        self.partial.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def finish(self, step: int, keep: int) -> None:
        """Publish the checkpoint that was written, then delete old ones so that `keep` are left."""
        target = self.at(step)
        written = self.partial / target.name
        write_checksums(written)
        publish_directory(written, target)
        for old in [c for c in self.all() if c.step != step][: 1 - keep or None]:
            shutil.rmtree(old.path, ignore_errors=True)
        self.prune_best()

    @property
    def best(self) -> BestAdapters:
        return BestAdapters(self.path)

    @property
    def last(self) -> LastAdapter:
        return LastAdapter(self.path)

    def prune_best(self, now: int | None = None) -> None:
        """Delete the best adapters that are neither of step `now` nor the best at the time of a checkpoint."""
        if self.best.steps():
            self.best.keep([now, *(c.measurements.best for c in self.all())])

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints after `step`: they are damaged, and the run repeats their steps."""
        self.best.forget_after(step)
        self.last.delete()
        for checkpoint in self.all():
            if checkpoint.step > step:
                aside = checkpoint.path.with_name(f"{DAMAGED}{checkpoint.path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.path.rename(aside)


def _visible_damage(checkpoint: Path) -> str | None:
    """The first file of a checkpoint without checksums that is visibly truncated or damaged.

    Tensors are not read: a file of `torch.save` is a ZIP archive, whose directory is at its end.
    """
    try:
        about = load_json(checkpoint / STATE)
        if not isinstance(about["global_step"], int) or not isinstance(about["log_history"], list):
            raise TypeError("global_step must be a number and log_history a list")
    except (OSError, ValueError, TypeError, KeyError) as e:
        return f"{STATE} cannot be read: {type(e).__name__}: {e}"
    for file in sorted((*checkpoint.glob("*.pt"), *checkpoint.glob("rng_state*.pth"))):
        if not zipfile.is_zipfile(file):
            return f"{file.name} is truncated or is not a file of torch.save"
    return None
