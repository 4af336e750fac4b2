"""The directory of a run, and its files.

run.yaml        the resolved configuration; `smollm3 train --config` reads it
versions.json   the distributions that the run used, and the hashes of plugin files
metrics.jsonl   one object per line: step, loss, learning rate, tokens per second, …
before.json     held-out loss before the first step, for a resumed run
report.json     held-out loss and sample answers, before and after
adapter/        the tuned adapter, its tokenizer and smollm3.json
checkpoints/    checkpoints that `--resume` continues from
cache.json      the cache entries that its base was loaded from; `smollm3 cache clean` keeps them
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
from smollm3_finetune.files.json import write_json
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.model.saved_adapter import CALIBRATION
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
    """Whether the name was generated, not given by the user."""

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
        """The directory of a new run; nothing is created yet.

        Raises ConfigError if `output` is not empty: files of a user are never overwritten. Of several processes only
        the main one requires it to be empty (`must_be_empty`).
        """
        if output is not None:
            path = user_path(output, "--output")
            if path.exists() and not path.is_dir():
                raise ConfigError(f"--output {output} is a file", hint="--output DIRECTORY")
            if must_be_empty and path.is_dir() and any(path.iterdir()):
                what = "already contains a run" if cls(path).config.exists() else "is not empty"
                raise ConfigError(
                    f"the output directory {output!r} {what}",
                    hint="choose another --output, or omit it for a new directory",
                )
            return cls(path)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub('[^A-Za-z0-9.]+', '-', title).strip('-')}"
        return cls(next(p for p in _numbered(RUNS / name) if not p.exists()), ours=True)

    def reserved(self) -> RunDir:
        """This directory, created; with another number if another run has created it in the meantime."""
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
        """An existing run. Raises ModelError if `path` is not a run."""
        run = cls(user_path(path, "the run"))
        if not str(path).strip() or not run.config.exists():
            raise ModelError(
                f"{str(path)!r} is not a run directory: it does not contain run.yaml",
                hint="by default, runs are in runs/",
            )
        return run

    def create(self, config: RunConfig, versions: Mapping[str, Any]) -> None:
        """Create the directory and write the configuration and the versions."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.config.open("x", encoding="utf-8") as stream:  # if two runs compete, only one gets the directory
                stream.write(_rerun_yaml(config))
            write_json(self.versions, versions)
        except FileExistsError as e:
            raise ConfigError(
                f"the output directory {str(self.path)!r} already contains a run", hint="choose another --output"
            ) from e
        except OSError as e:
            raise ConfigError(f"the run directory {self.path} cannot be written: {e.strerror}") from e

    def write_config(self, config: RunConfig) -> None:
        """Replace the configuration with that of the resumed run."""
        partial = self.config.with_suffix(".partial")
        try:
            partial.write_text(_rerun_yaml(config), encoding="utf-8")
            partial.replace(self.config)
        except OSError as e:
            raise ConfigError(f"the run directory {self.path} cannot be written: {e.strerror}") from e

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Reserve the run's directory for this process. Raises ConfigError if another process trains in it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".smollm3-lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as e:
            raise ConfigError(
                f"the run {self.path} is being trained by another process", hint="wait for that process, or stop it"
            ) from e
        except OSError as e:
            raise ConfigError(f"the run directory {self.path} cannot be written: {e.strerror}") from e
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # before another process can hold it
            lock.release()

    def check_identity(self, now: Mapping[str, Any]) -> None:
        """Raises IncompatibleError if a resumed run has other rows, or another number of processes."""
        saved = load_json(self.versions)
        if saved.get("processes", now["processes"]) != now["processes"]:
            raise IncompatibleError(
                f"the run {self.path} was started with {saved['processes']} processes, but {now['processes']} "
                "are running",
                hint=f"torchrun --nproc-per-node {saved['processes']} -m smollm3_finetune.main train --resume …",
            )
        if saved.get("rows", now["rows"]) != now["rows"]:
            raise IncompatibleError(
                f"the rows of the run {self.path}, or their rendering, have changed since it started",
                hint=f"restore them, or start a new run: --config {shlex.quote(str(self.config))}",
            )

    def measured_before(self) -> dict[str, Any] | None:
        """The measurements before the first step; None if they are missing."""
        with contextlib.suppress(OSError, ValueError):
            found = load_json(self.before)
            if isinstance(found, dict) and "held_out_loss" in found:
                return found
        return None

    def discard_unstarted(self) -> None:
        """Delete the files of a run that failed before its first step, so that the same command can be repeated."""
        if self.metrics.exists() or self.adapter.exists() or self.saved_checkpoints():
            return
        for file in (self.config, self.versions, self.before, self.path / CALIBRATION, self.path / USES):
            file.unlink(missing_ok=True)
        for directory in (self.checkpoints, self.path):
            with contextlib.suppress(OSError):  # it does not exist, or holds other files
                directory.rmdir()

    def saved_checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint, the oldest first, complete or not."""
        found = map(Checkpoint.of, self.checkpoints.iterdir() if self.checkpoints.is_dir() else ())
        return sorted((c for c in found if c is not None), key=lambda c: c.step)

    def last_checkpoint(self) -> Checkpoint:
        """The newest complete checkpoint. Raises ModelError if there is none."""
        found = [c for c in self.saved_checkpoints() if c.is_complete()]
        if not found:
            command = f"smollm3 train --config {shlex.quote(str(self.config))} --set train.save_every=100"
            raise ModelError(
                f"{self.path} has no checkpoint to resume from",
                hint=f"start a new run that saves checkpoints: {command}",
            )
        check_checkpoint(found[-1].path, alone=len(found) == 1)
        return found[-1]

    def forget_after(self, step: int) -> None:
        """Remove the lines of metrics.jsonl that a resumed run will write again, and a truncated last line."""
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
    """The path, then the path with -2, -3, … appended."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def _rerun_yaml(config: RunConfig) -> str:
    """The content of run.yaml: without the output directory, so that it starts a new run in another directory."""
    return dump_yaml(as_dict(replace(config, output=None)))


def check_checkpoint(checkpoint: Path, *, alone: bool) -> None:
    """Raises ModelError, naming the file, if a file that resuming reads is truncated or damaged.

    Tensors are not read: a file of `torch.save` is a ZIP archive, whose directory is at its end.
    """
    hint = f"rm -r {shlex.quote(str(checkpoint))}" + ("" if alone else ", to use the checkpoint before it")
    state = checkpoint / "trainer_state.json"
    try:
        about = load_json(state)
        if not isinstance(about["global_step"], int) or not isinstance(about["log_history"], list):
            raise TypeError("global_step must be a number and log_history a list")
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ModelError(f"{state} is damaged: {type(e).__name__}: {e}", hint=hint) from e
    for file in sorted((*checkpoint.glob("*.pt"), *checkpoint.glob("rng_state*.pth"))):
        if not zipfile.is_zipfile(file):
            raise ModelError(f"{file} is damaged: it is truncated or is not a file of torch.save", hint=hint)
