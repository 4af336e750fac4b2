"""The directory of a run, and what lies where in it.

run.yaml        the configuration with everything resolved; `smollm3 train --config` reads it
versions.json   the distributions that made it, and the hashes of plugin files
metrics.jsonl   one object a line: step, loss, learning rate, tokens a second, …
before.json     held-out loss before the first step, for a run that is resumed
report.json     held-out loss and sample answers, before and after
adapter/        the tuned adapter, its tokenizer and smollm3.json
checkpoints/    what `--resume` continues from
cache.json      the entries of the cache that its base was made of, which `smollm3 cache clean` keeps
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollm3_finetune.cache.use import USES
from smollm3_finetune.config.load import as_dict
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.config.yaml12 import dump_yaml
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError
from smollm3_finetune.model.saved_adapter import CALIBRATION
from smollm3_finetune.model_files.json_files import write_json
from smollm3_finetune.paths import user_path

RUNS = Path("runs")


@dataclass(frozen=True)
class Checkpoint:
    """A directory `checkpoint-N` that a run can continue from."""

    path: Path
    step: int
    """Optimizer steps taken."""

    @classmethod
    def of(cls, path: Path) -> Checkpoint | None:
        """The checkpoint in a directory; None if its name is another."""
        number = path.name.removeprefix("checkpoint-")
        return cls(path, int(number)) if path.name != number and number.isdigit() else None

    def is_complete(self) -> bool:
        """Whether every file is there that resuming needs."""
        return all((self.path / name).exists() for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"))


@dataclass(frozen=True)
class RunDir:
    path: Path
    ours: bool = False
    """The name was chosen here, not by the user."""

    @property
    def config(self) -> Path:
        return self.path / "run.yaml"

    @property
    def versions(self) -> Path:
        return self.path / "versions.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def before(self) -> Path:
        return self.path / "before.json"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @classmethod
    def fresh(cls, output: str | None, title: str, *, must_be_empty: bool = True) -> RunDir:
        """The directory of a new run; nothing is made yet.

        Raises ConfigError if `output` holds anything already: nothing of a user's is overwritten. Of several
        processes only the main one needs it empty (`must_be_empty`).
        """
        if output is not None:
            path = user_path(output, "--output")
            if path.exists() and not path.is_dir():
                raise ConfigError(f"--output {output} is a file", hint="--output DIRECTORY")
            if must_be_empty and path.is_dir() and any(path.iterdir()):
                what = "holds a run already" if cls(path).config.exists() else "is not empty"
                raise ConfigError(f"--output {output} {what}", hint="another --output, or none for a fresh directory")
            return cls(path)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub('[^A-Za-z0-9.]+', '-', title).strip('-')}"
        return cls(next(p for p in _numbered(RUNS / name) if not p.exists()), ours=True)

    def reserved(self) -> RunDir:
        """This directory, made; under another number where another run has taken it meanwhile."""
        if not self.ours:
            return self
        for path in _numbered(self.path):
            try:
                path.mkdir(parents=True)
                return RunDir(path, ours=True)
            except FileExistsError:
                continue
            except OSError as e:
                raise ConfigError(f"the run directory {path} cannot be written: {e.strerror}") from e
        raise AssertionError("numbers have no end")

    @classmethod
    def existing(cls, path: str | Path) -> RunDir:
        """A run that is there. Raises ModelError where it is none."""
        run = cls(user_path(path, "the run"))
        if not str(path).strip() or not run.config.exists():
            raise ModelError(f"{str(path)!r} is not a run: it holds no run.yaml", hint="runs lie under runs/")
        return run

    def create(self, config: RunConfig, versions: Mapping[str, Any]) -> None:
        """Make the directory and write what decides the run."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.config.open("x", encoding="utf-8") as stream:  # of two runs only one gets the directory
                stream.write(_again(config))
            write_json(self.versions, versions)
        except FileExistsError as e:
            raise ConfigError(f"{self.path} holds a run already", hint="another --output") from e
        except OSError as e:
            raise ConfigError(f"the run directory {self.path} cannot be written: {e.strerror}") from e

    def write_config(self, config: RunConfig) -> None:
        """Replace what decides the run, by what it is resumed with."""
        partial = self.config.with_suffix(".partial")
        try:
            partial.write_text(_again(config), encoding="utf-8")
            partial.replace(self.config)
        except OSError as e:
            raise ConfigError(f"the run directory {self.path} cannot be written: {e.strerror}") from e

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The run's directory for one process at a time. Raises ConfigError where another one trains in it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".smollm3-lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as e:
            raise ConfigError(
                f"the run {self.path} is being trained by another process", hint="wait for it, or end it first"
            ) from e
        except OSError as e:
            raise ConfigError(f"the run directory {self.path} cannot be written: {e.strerror}") from e
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # before another process can hold it
            lock.release()

    def check_identity(self, now: Mapping[str, Any]) -> None:
        """Raises IncompatibleError where a run is to go on with other rows, or in more or fewer processes."""
        saved = json.loads(self.versions.read_text(encoding="utf-8"))
        if saved.get("processes", now["processes"]) != now["processes"]:
            raise IncompatibleError(
                f"the run {self.path} is one of {saved['processes']} processes, and {now['processes']} are here",
                hint=f"torchrun --nproc-per-node {saved['processes']} -m smollm3_finetune.main train --resume …",
            )
        if saved.get("rows", now["rows"]) != now["rows"]:
            raise IncompatibleError(
                f"the rows of the run {self.path}, or how they are rendered, have changed since it began",
                hint=f"put them back as they were, or start another run: --config {shlex.quote(str(self.config))}",
            )

    def measured_before(self) -> dict[str, Any] | None:
        """What was measured before the first step; None where that is not there."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.before.read_text(encoding="utf-8"))
            if isinstance(found, dict) and "held_out_loss" in found:
                return found
        return None

    def discard_unstarted(self) -> None:
        """Take a run back that failed before its first step, so that the same command can be given again."""
        if self.metrics.exists() or self.adapter.exists() or self.saved_checkpoints():
            return
        for file in (self.config, self.versions, self.before, self.path / CALIBRATION, self.path / USES):
            file.unlink(missing_ok=True)
        for directory in (self.checkpoints, self.path):
            with contextlib.suppress(OSError):  # it was never made, or holds files of somebody else
                directory.rmdir()

    def saved_checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint, the oldest first, complete or not."""
        found = map(Checkpoint.of, self.checkpoints.iterdir() if self.checkpoints.is_dir() else ())
        return sorted((c for c in found if c is not None), key=lambda c: c.step)

    def last_checkpoint(self) -> Checkpoint:
        """The newest complete checkpoint. Raises ModelError if there is none."""
        found = [c for c in self.saved_checkpoints() if c.is_complete()]
        if not found:
            again = f"smollm3 train --config {shlex.quote(str(self.config))} --set train.save_every=100"
            raise ModelError(f"{self.path} has no checkpoint to resume from", hint=f"start again, with some: {again}")
        check_checkpoint(found[-1].path, alone=len(found) == 1)
        return found[-1]

    def forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that a resumed run will write again, and a last one that was cut short."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if json.loads(line)["step"] <= step:
                    kept.append(f"{line}\n")
        partial = self.metrics.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self.metrics)


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then with -2, -3, … behind it."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def _again(config: RunConfig) -> str:
    """run.yaml: without the directory, so that it starts a new run, and never this one over again."""
    return dump_yaml(as_dict(replace(config, output=None)))


def check_checkpoint(checkpoint: Path, *, alone: bool) -> None:
    """Raises ModelError, naming the file, where one that resuming reads was cut short or is damaged.

    Tensors are not read: a file of `torch.save` is a ZIP archive, whose directory stands at its end.
    """
    hint = f"rm -r {shlex.quote(str(checkpoint))}" + ("" if alone else ", and the checkpoint before it is used")
    state = checkpoint / "trainer_state.json"
    try:
        about = json.loads(state.read_text(encoding="utf-8"))
        if not isinstance(about["global_step"], int) or not isinstance(about["log_history"], list):
            raise TypeError("global_step must be a number and log_history a list")
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ModelError(f"{state} is damaged: {type(e).__name__}: {e}", hint=hint) from e
    for file in sorted((*checkpoint.glob("*.pt"), *checkpoint.glob("rng_state*.pth"))):
        if not zipfile.is_zipfile(file):
            raise ModelError(f"{file} is damaged: it was cut short or is no file of torch", hint=hint)
