"""The directory of a pipeline, and of a sweep: a state file, and a directory for each part.

pipeline.json      the state of each stage
NAME/              the result of the stage NAME: a run, a model or an evaluation
NAME-2/            that of the same stage, run again because something that it depends on has changed
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import json_object
from smollm3_finetune.files.locks import is_held, locked
from smollm3_finetune.files.partial import PARTIAL, delete_unfinished
from smollm3_finetune.paths import check_below_directories, user_path
from smollm3_finetune.runs.rundir import RUNS
from smollm3_finetune.runs.traces import LOCK


class Described(Protocol):
    """A file that describes what a directory holds."""

    @property
    def path(self) -> Path: ...

    @property
    def name(self) -> str: ...

    @property
    def output(self) -> str | None: ...


@dataclass(frozen=True)
class StateDir:
    """A directory with a state file and a directory for each part; a pipeline has stages, a sweep has trials."""

    path: Path

    what: ClassVar[str]
    """`pipeline` or `sweep`, in messages and in the name of the state file."""
    part: ClassVar[str]
    """`stage` or `trial`."""

    @classmethod
    def of(cls, file: Described) -> Self:
        """The directory of a file: that of `output`, else `runs/pipelines/NAME` or `runs/sweeps/NAME`.

        Raises ConfigError if it has files of somebody else, or belongs to another file.
        """
        default = RUNS / f"{cls.what}s" / file.name
        path = user_path(file.output, "output") if file.output is not None else default
        hint = f"output: OTHER_DIRECTORY in {file.path}"
        check_below_directories("output", path)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"output: {path} is a file", hint=hint)
        found = cls(path)
        if not found.state.exists():
            if path.is_dir() and not found._is_own():
                raise ConfigError(f"the directory {path} is not empty, and holds no {cls.what}", hint=hint)
            return found
        other = json_object(found.state).get("file")
        if isinstance(other, str) and Path(other).is_file() and not Path(other).samefile(file.path):
            raise ConfigError(f"the directory {path} holds the {cls.what} of {other}", hint=hint)
        return found

    @property
    def state(self) -> Path:
        return self.path / f"{self.what}.json"

    @property
    def damaged(self) -> Path:
        """The name that the user gives to a damaged state: its parts are run again, in new directories."""
        return self.path / f"damaged-{self.what}.json"

    def _is_own(self) -> bool:
        """Whether a directory without state is ours: nothing was written, or the state was damaged."""
        names = {p.name for p in self.path.iterdir()}
        return self.damaged.name in names or all(name == LOCK or name.startswith(PARTIAL) for name in names)

    @property
    def lock(self) -> Path:
        return self.path / LOCK

    def is_running(self) -> bool:
        return is_held(self.lock)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Reserve the directory for this process; it is deleted if it stays empty.

        Raises ConfigError if another process uses it.
        """
        with writing(self.path, elsewhere="another output"):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.lock, f"the {self.what} in {self.path} is being run by another process", remove=True):
                delete_unfinished(self.path)
                yield
        finally:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def vacant(self, part: str, taken: Collection[str]) -> str:
        """The name of a directory for a part that does not exist yet: NAME, NAME-2, …; none of those `taken`."""
        names = itertools.chain([part], (f"{part}-{number}" for number in itertools.count(2)))
        return next(n for n in names if not (self.path / n).exists() and (n == part or n not in taken))


@dataclass(frozen=True)
class PipelineDir(StateDir):
    what: ClassVar[str] = "pipeline"
    part: ClassVar[str] = "stage"
