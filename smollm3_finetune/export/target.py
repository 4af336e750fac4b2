"""What a user names for an export: the run or model, and the output directory.

Imports nothing heavy.
"""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

from smollm3_finetune.components.loadable import loadable_file
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.model_files.output import check_vacant
from smollm3_finetune.paths import user_path
from smollm3_finetune.runs.find import find_runs
from smollm3_finetune.runs.rundir import RunDir


def check_is_model(target: str, to: str, registry: Registry) -> None:
    """Raises ConfigError for a directory that is neither a run nor a model, but has one in it or around it."""
    place = RunDir(user_path(target, "the run or model"))
    if place.config.exists() or (place.path / "config.json").is_file():
        return
    again = f"smollm3 export {{}} --to {to}"
    if (inside := place.containing()) is not None:
        hint = f"it is inside a run: {again.format(shlex.quote(str(inside)))}"
        raise ConfigError(f"{target!r} is not a model", hint=hint)
    if not place.path.is_dir():
        return
    if (run := next(find_runs(place.path), None)) is not None:
        hint = again.format(shlex.quote(str(run.path)))
        raise ConfigError(f"{target!r} is not a run or a model, but contains runs", hint=hint)
    if (file := loadable_file(place.path, registry)) is not None:
        hint = f"name the file: {again.format(shlex.quote(str(file)))} --output DIR"
        raise ConfigError(f"{target!r} is not a model, but contains one in a file", hint=hint)


def check_default_output(path: Path) -> None:
    """Raises ConfigError if the default output directory is not vacant; the hint names one that is free."""
    try:
        check_vacant("--output", path)
    except ConfigError as e:
        numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
        free = next(p for p in numbered if not p.exists() and not p.is_symlink())
        raise ConfigError(e.message, hint=f"--output {shlex.quote(str(free))}") from None
