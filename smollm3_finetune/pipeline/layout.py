"""The directory of a pipeline.

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

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import json_object
from smollm3_finetune.files.locks import is_held, locked
from smollm3_finetune.files.partial import PARTIAL, delete_unfinished
from smollm3_finetune.paths import check_below_directories, user_path
from smollm3_finetune.pipeline.stage import PipelineFile
from smollm3_finetune.runs.rundir import LOCK, RUNS

FOLDER = RUNS / "pipelines"
STATE = "pipeline.json"
DAMAGED = "damaged-pipeline.json"
"""The name that the user gives to a damaged state: its stages are run again, in new directories."""


@dataclass(frozen=True)
class PipelineDir:
    path: Path

    @classmethod
    def of(cls, pipeline: PipelineFile) -> PipelineDir:
        """The directory of a pipeline: that of `output`, else `runs/pipelines/NAME`.

        Raises ConfigError if it has files of somebody else, or belongs to another file.
        """
        path = user_path(pipeline.output, "output") if pipeline.output is not None else FOLDER / pipeline.name
        hint = f"output: OTHER_DIRECTORY in {pipeline.path}"
        check_below_directories("output", path)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"output: {path} is a file", hint=hint)
        found = cls(path)
        if not found.state.exists():
            if path.is_dir() and not found._is_own():
                raise ConfigError(f"the directory {path} is not empty, and holds no pipeline", hint=hint)
            return found
        other = json_object(found.state).get("file")
        if isinstance(other, str) and Path(other).is_file() and not Path(other).samefile(pipeline.path):
            raise ConfigError(f"the directory {path} holds the pipeline of {other}", hint=hint)
        return found

    @property
    def state(self) -> Path:
        return self.path / STATE

    def _is_own(self) -> bool:
        """Whether a directory without state is that of a pipeline: nothing was written, or the state was damaged."""
        names = {p.name for p in self.path.iterdir()}
        return DAMAGED in names or all(name == LOCK or name.startswith(PARTIAL) for name in names)

    @property
    def lock(self) -> Path:
        return self.path / LOCK

    def is_running(self) -> bool:
        return is_held(self.lock)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Reserve the directory for this process. Raises ConfigError if another process runs the pipeline."""
        with writing(self.path, elsewhere="another output"):
            self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.lock, f"the pipeline in {self.path} is being run by another process", remove=True):
            delete_unfinished(self.path)
            yield

    def vacant(self, stage: str, taken: Collection[str]) -> str:
        """The name of a directory for a stage that does not exist yet: NAME, NAME-2, …; none of those `taken`."""
        names = itertools.chain([stage], (f"{stage}-{number}" for number in itertools.count(2)))
        return next(n for n in names if not (self.path / n).exists() and (n == stage or n not in taken))
