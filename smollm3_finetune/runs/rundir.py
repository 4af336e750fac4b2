"""The directory of a run, and its files.

run.yaml        the resolved configuration; `smollm3 train --config` reads it
versions.json   the distributions that the run used, and the hashes of plugin files
metrics.jsonl   one object per line: step, loss, learning rate, tokens per second, …
samples.jsonl   one object per line: step, prompt and answer, with train.sample_every
before.json     held-out loss before the first step, for a resumed run
after.json      the loss of each held-out row after training, and a hash of these rows
trained.json    steps and tokens, written after the last step; with train.keep_best, also which step is published
report.json     held-out loss and sample answers, before and after
error.json      message and hint of the error that ended the run
reference.json  which weights the stored values of the reference are of, with train.reference=once or another model
start/          the trained weights before the first step, if the loss compares the model with them
adapter/        the tuned adapter, its tokenizer and smollm3.json
checkpoints/    checkpoints that `--resume` continues from, and the best adapter with train.keep_best
base/           the merged base of a run with --fresh-adapter
data.json       counts and lengths of the rows, and three rows with their loss masks
origins.json    where the values of run.yaml come from
warnings.jsonl  the warnings that the run printed
report.html     a page about the run
launch.json     how a launcher continues the run: its settings and plugins; `.launched/` has the errors of its processes
launcher/       what the launcher keeps, such as a job script and the number of the job
trackers/       what trackers of plugins keep, each in a folder of its name
cache.json      the cache entries that its base was loaded from; `smollm3 cache clean` keeps them
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollm3_finetune.cache.use import USES
from smollm3_finetune.config.load import as_dict
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.config.yaml12 import dump_yaml
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import json_object, read_json, write_json
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.locks import locked
from smollm3_finetune.files.partial import PARTIAL, delete_unfinished
from smollm3_finetune.files.writing import write_text
from smollm3_finetune.model.saved_adapter import CALIBRATION
from smollm3_finetune.paths import check_below_directories, user_path
from smollm3_finetune.runs.best import BEST
from smollm3_finetune.runs.checkpoints import Checkpoints
from smollm3_finetune.runs.traces import LOCK

RUNS = Path("runs")
LONGEST = 120
"""Characters of a run's title in the name of its directory: a file system takes 255 bytes."""
LAUNCH, LAUNCHED, LAUNCHER = "launch.json", ".launched", "launcher"
"""What a launching process hands over, where the processes of the run write what ended them, and files of the launcher,
such as the number of a job."""
TRACKERS = "trackers"
"""Files of trackers of plugins, in folders of their names."""
OUTPUT = "--output DIR"
BASE_UNFINISHED = ".base.smollm3-"
"""Begins the names that a merge into `base` uses until it is complete; see `model_files.output`."""
BEFORE_CHECKPOINT = {
    "run.yaml", "versions.json", "metrics.jsonl", "samples.jsonl", "before.json", "error.json", "checkpoints",
    "after.json", "tensorboard", CALIBRATION, USES, LOCK,
    "data.json", "origins.json", "warnings.jsonl", "report.html", "start", "reference.json", "base", LAUNCH, LAUNCHED,
    LAUNCHER, TRACKERS,
}  # fmt: skip
"""The files of a run that has not saved a checkpoint yet."""


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
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def before(self) -> Path:
        return self.path / "before.json"

    @property
    def after(self) -> Path:
        return self.path / "after.json"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def trained(self) -> Path:
        return self.path / "trained.json"

    @property
    def error(self) -> Path:
        return self.path / "error.json"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def origins(self) -> Path:
        return self.path / "origins.json"

    @property
    def warnings(self) -> Path:
        return self.path / "warnings.jsonl"

    @property
    def launch(self) -> Path:
        return self.path / LAUNCH

    @property
    def launched(self) -> Path:
        return self.path / LAUNCHED

    @property
    def page(self) -> Path:
        return self.path / "report.html"

    @property
    def reference(self) -> Path:
        return self.path / "reference.json"

    @property
    def start(self) -> Path:
        return self.path / "start"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def base(self) -> Path:
        """The base of a run that owns it, an ordinary model; other runs have none."""
        return self.path / "base"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @classmethod
    def fresh(cls, output: str | None, title: str, *, must_be_empty: bool = True) -> RunDir:
        """The directory of a new run; nothing is created yet.

        Raises ConfigError if `output` is not empty: files of a user are never overwritten. A run that ended before its
        first checkpoint is overwritten. Of several processes only the main one examines `output` (`must_be_empty`).
        """
        if output is not None:
            path = user_path(output, "--output")
            if path.exists() and not path.is_dir():
                raise ConfigError(f"--output {output} is a file", hint="--output DIRECTORY")
            check_below_directories("--output", path)
            if must_be_empty and path.is_dir() and any(path.iterdir()) and not cls(path).holds_nothing():
                raise ConfigError(
                    f"the output directory {output!r} {cls(path)._content()}",
                    hint="choose another --output, or omit it for a new directory",
                )
            return cls(path)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub('[^A-Za-z0-9.]+', '-', title).strip('-')[:LONGEST]}"
        return cls(next(p for p in _numbered(RUNS / name) if not p.exists()), ours=True)

    def reserved(self) -> RunDir:
        """This directory, created; with another number if another run has created it in the meantime."""
        if not self.ours:
            return self
        for path in _numbered(self.path):
            with writing(path, elsewhere=OUTPUT), contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return RunDir(path, ours=True)
        raise AssertionError("numbers have no end")

    @classmethod
    def existing(cls, path: str | Path) -> RunDir:
        """An existing run. Raises ModelError if `path` is not a run."""
        if str(path).startswith("-"):
            raise ConfigError(f"--resume needs a run directory or auto, got {str(path)!r}", hint="--resume auto")
        run = cls(user_path(path, "the run"))
        if not str(path).strip() or not run.config.exists():
            raise ModelError(
                run.why_none(),
                hint=f"it is inside a run: --resume {shlex.quote(str(inside))}"
                if (inside := run.containing())
                else "--resume runs/NAME, or --resume auto",
            )
        return run

    def _content(self) -> str:
        if not self.config.exists():
            return "is not empty"
        return "already contains a run, which is finished" if self.report.exists() else "already contains a run"

    def why_none(self) -> str:
        """Why this directory is not a run, as a sentence."""
        if not self.path.exists():
            return f"the run directory {str(self.path)!r} does not exist"
        kind = "is not a run directory: it does not contain run.yaml"
        return f"{str(self.path)!r} {kind if self.path.is_dir() else 'is a file, not a run directory'}"

    def containing(self) -> Path | None:
        """The run that contains this path, such as its adapter; None if no run does."""
        return next((p for p in self.path.parents if RunDir(p).config.exists()), None)

    def make(self) -> None:
        """Create the directory."""
        with writing(self.path, elsewhere=OUTPUT):
            self.path.mkdir(parents=True, exist_ok=True)

    def create(self, config: RunConfig, versions: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Write the configuration and the versions; the files of a run that holds nothing are deleted first.

        The caller holds the directory.
        """
        with writing(self.path, elsewhere=OUTPUT):
            if self.config.exists():
                if not self.holds_nothing():  # another process has finished a run here since this one started
                    raise ConfigError(
                        f"the output directory {str(self.path)!r} already contains a run",
                        hint="choose another --output",
                    )
                say(f"{self.path} contains a run that ended before its first checkpoint: it is started again")
                self.discard()
            write_text(self.config, _rerun_yaml(config))
            write_json(self.versions, versions)

    def write_config(self, config: RunConfig) -> None:
        """Replace the configuration with that of the resumed run."""
        with writing(self.config, left="it is unchanged"):
            write_text(self.config, _rerun_yaml(config))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Reserve the run's directory for this process, and delete what a killed process left unfinished in it.

        Raises ConfigError if another process trains in it.
        """
        busy = f"the run {self.path} is being trained by another process"
        with locked(self.path / LOCK, busy, remove=True):
            for directory in (self.path, self.checkpoints, self.adapter):
                delete_unfinished(directory)
            yield

    def check_identity(self, now: Mapping[str, Any]) -> None:
        """Raises IncompatibleError if a resumed run has other rows.

        Another version of the formatter or the objective is accepted if the tokens are equal.
        """
        saved = read_json(self.versions)
        same_tokens = saved.get("tokens") is not None and saved["tokens"] == now.get("tokens")
        if saved.get("rows", now["rows"]) != now["rows"] and not same_tokens:
            raise IncompatibleError(
                f"the rows of the run {self.path}, or their rendering, have changed since it started",
                hint=f"restore the rows, or start a new run: smollm3 train --config {shlex.quote(str(self.config))}",
            )

    def measured_before(self) -> dict[str, Any] | None:
        """The measurements before the first step, without the prompt; None if they are missing."""
        with contextlib.suppress(OSError, ValueError):
            found = load_json(self.before)
            if isinstance(found, dict) and "held_out_loss" in found:
                return {key: value for key, value in found.items() if key != "prompt"}
        return None

    def discard_unstarted(self) -> None:
        """Delete the files of a run that failed before its first step, so that the same command can be repeated.

        Those of a launched run are left to the process that launched it, which reads the error.
        """
        with contextlib.suppress(OSError):  # the error that ended the run is reported, not that of deleting
            if not self.metrics.exists() and self.holds_nothing() and not self.launch.exists():
                self.discard()

    def remove_empty(self) -> None:
        """Delete the directory if it is empty."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def holds_nothing(self) -> bool:
        """Whether the directory is a run that ended before its first checkpoint, and has no files of anybody else.

        A best adapter is worth nothing, because the repeated run takes it again; unless an error ended the run and
        named that adapter as its result.
        """
        names = {p.name for p in self.path.iterdir() if not p.name.startswith((PARTIAL, BASE_UNFINISHED))}
        checkpoints = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        # a directory with nothing but run.yaml may be the user's own
        ours = {LOCK, self.versions.name} & names
        handed_over = bool(names) and names <= {LOCK, LAUNCH, LAUNCHED, LAUNCHER}  # no process has begun it
        begun = handed_over or (ours and self.config.name in names and names <= BEFORE_CHECKPOINT)
        return bool(begun) and all(p.name.startswith((PARTIAL, BEST)) for p in checkpoints) and not self._names_best()

    def _names_best(self) -> bool:
        """Whether the error that ended the run named an adapter in `checkpoints/`."""
        said = str(json_object(self.error).get("message"))
        return any(self.saved.best.at(step).name in said for step in self.saved.best.steps())

    def discard(self) -> None:
        """Delete the files of a run that holds nothing worth keeping; the directory and what was handed over stay."""
        for path in self.path.iterdir():
            if path.name in (LAUNCH, LAUNCHED, LAUNCHER):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path not in (self.config, self.path / LOCK):
                path.unlink()
        self.config.unlink(missing_ok=True)  # last: without it, the rest would be files of somebody else

    def discard_launched(self) -> None:
        """Delete a run that was handed over and has saved nothing. The caller holds the directory."""
        with contextlib.suppress(OSError):
            if self.config.exists():
                self.discard()
            for name in (LAUNCH, self.error.name):
                (self.path / name).unlink(missing_ok=True)
            for name in (LAUNCHED, LAUNCHER):
                shutil.rmtree(self.path / name, ignore_errors=True)

    @property
    def saved(self) -> Checkpoints:
        return Checkpoints(self.checkpoints)

    def start_again(self) -> str:
        """The command that starts a run with this configuration, in the same directory if it holds nothing else."""
        output = f" --output {shlex.quote(str(self.path))}" if self.holds_nothing() else ""
        return f"smollm3 train --config {shlex.quote(str(self.config))}{output}"


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then the path with -2, -3, … appended."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def _rerun_yaml(config: RunConfig) -> str:
    """The content of run.yaml: without the output directory, so that it starts a new run in another directory."""
    return dump_yaml(as_dict(replace(config, output=None)))
