"""What a run records after its last step, in trained.json, and where its adapter is until it has finished."""

from __future__ import annotations

import shlex

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.json import json_object, read_json
from smollm3_finetune.runs.checkpoints import Checkpoint
from smollm3_finetune.runs.rundir import RunDir


def trained_count(run: RunDir, name: str) -> int | None:
    """`steps` or `tokens` of a run whose steps are done; None if there is no `trained.json`.

    Raises ModelError if it is damaged.
    """
    if not run.trained.exists():
        return None
    value = read_json(run.trained).get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelError(
            f"{run.trained} is damaged: {name} must be a whole number",
            hint=f"rm {shlex.quote(str(run.trained))}, to continue from the last checkpoint",
        )
    return value


def last_adapter(run: RunDir) -> Checkpoint | None:
    """The adapter after the last step of a run that has taken all its steps; None if there is none.

    In `adapter/` it may be that of an earlier step, with the lowest held-out loss.
    """
    if not (steps := trained_count(run, "steps")):
        return None
    places = (run.saved.last.at(steps), *(() if is_undecided(run) else (run.adapter,)))
    return next((Checkpoint(path, steps) for path in places if path.is_dir()), None)


def is_undecided(run: RunDir) -> bool:
    """Whether a run has taken its steps and not decided yet which adapter has the lowest held-out loss."""
    return json_object(run.trained).get("published", 0) is None


def check_decided(run: RunDir) -> None:
    """Raises ModelError if the run `is_undecided`: `adapter/` does not exist, or is that of a shorter run."""
    if is_undecided(run):
        raise ModelError(
            f"the run {run.path} has not finished: it has not decided which adapter has the lowest held-out loss",
            hint=f"smollm3 train --resume {shlex.quote(str(run.path))}",
        )
