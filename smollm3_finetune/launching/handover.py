"""What the launching process hands over in `launch.json`, so that each process of the run plans the same run."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api import Launch
from smollm3_finetune.config.load import Setting
from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.writing import write_text
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.start import PlannedRun

VERSION = 1
"""Of the form of the file."""


@dataclass(frozen=True, kw_only=True)
class Handover:
    """A run as it was asked for, and where."""

    settings: tuple[Setting, ...]
    """Those of a new run, or the changes of a resumed one."""
    resume: bool
    """Whether the run existed before it was launched."""
    plugins: tuple[str, ...] = ()
    no_plugins: bool = False
    pipeline: Mapping[str, str] | None = None
    """The pipeline and the stage that a new run is."""
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More entries of versions.json."""
    directory: str = ""
    """The working directory, to which relative paths refer."""
    run: str = ""
    """The run directory as the launching process calls it."""
    quiet: bool = False
    """Whether the processes print nothing."""
    debug: bool = False
    """Whether they print tracebacks."""

    @classmethod
    def of(cls, planned: PlannedRun, **more: Any) -> Handover:
        return cls(
            settings=planned.settings,
            resume=planned.checkpoint is not None,
            plugins=planned.given_plugins,
            pipeline=planned.plan.pipeline,
            directory=os.getcwd(),
            run=str(planned.run.path),
            **more,
        )

    def write(self, run: RunDir) -> None:
        about = {"version": VERSION, **dataclasses.asdict(self)}
        write_text(run.launch, json.dumps(about, ensure_ascii=False, indent=2, default=str) + "\n")

    @classmethod
    def read(cls, run: RunDir) -> Handover:
        """Raises ModelError if the file is missing or damaged."""
        try:
            about = dict(load_json(run.launch))
            if (version := about.pop("version")) != VERSION:
                raise ValueError(f"it has version {version}, not {VERSION}")
            settings = [Setting(**{**s, "key": tuple(s["key"])}) for s in about.pop("settings")]
            return cls(settings=tuple(settings), **{**about, "plugins": tuple(about["plugins"])})
        except FileNotFoundError as e:
            raise ModelError(f"{run.path} was not handed over: {run.launch} does not exist",
                             hint="smollm3 train --launcher NAME …") from e  # fmt: skip
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
            raise ModelError(f"{run.launch} is damaged: {type(e).__name__}: {e}") from e


def launch_of(run: RunDir, device: str) -> Launch:
    """The launch of a run that is handed over in its directory."""
    path = run.path.absolute()
    command = (sys.executable, "-m", "smollm3_finetune.main", "train", "--launched", str(path))
    return Launch(run=path, command=command, device=device.partition(":")[0], name=path.name)
