"""Where a resumed run continues: the newest whole checkpoint, its measurements, and what is written again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.json import read_json
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.writing import write_text
from smollm3_finetune.runs.checkpoints import Checkpoint
from smollm3_finetune.runs.measurements import Measurements
from smollm3_finetune.runs.metrics import rows_of
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.trained import last_adapter


def last_checkpoint(run: RunDir, say: Callable[[str], None]) -> Checkpoint:
    """The newest whole checkpoint, or the adapter if the run has taken all its steps and saved no checkpoint.

    `say` gets a line for each newer checkpoint that is damaged. Raises ModelError if there is nothing to resume.
    """
    damaged = []

    def skip(checkpoint: Checkpoint, damage: str) -> None:
        damaged.append(f"{checkpoint.path} is damaged ({damage})")

    found = run.saved.newest_whole(skip)
    if found is None and not damaged and (last := last_adapter(run)) is not None:
        return last
    if found is None:
        if damaged:
            raise ModelError("; ".join(damaged), hint=f"start a new run: {run.start_again()}")
        raise ModelError(
            f"{run.path} has no checkpoint to resume from",
            hint=f"start it again: {run.start_again()}",
        )
    for line in damaged:
        say(f"{line}: the run continues from {found.path.name}")
    return found


def measurements_until(run: RunDir, checkpoint: Checkpoint) -> Measurements:
    """The held-out losses of a resumed run up to its checkpoint.

    That of the last step of a run was measured after its checkpoint was saved: it is in metrics.jsonl. A run
    without checkpoints has them in `trained.json`.
    """
    found = checkpoint.measurements
    if checkpoint.only_adapter:
        with contextlib.suppress(ModelError, ValueError):
            found = Measurements.from_json(read_json(run.trained).get("measurements", []))
    if checkpoint.step not in found:
        for _, row in rows_of(run.metrics):
            if row["step"] == checkpoint.step and isinstance(row.get("held_out_loss"), float):
                found = found.added(checkpoint.step, row["held_out_loss"])
    return found


def deleted_checkpoints(run: RunDir) -> bool:
    """Whether a finished run saved checkpoints of which none exists any more."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return load_json(run.report)["checkpoints"]["saved"] > 0 and not run.saved.all()
    return False


def forget_after(run: RunDir, step: int) -> None:
    """Remove what a resumed run will write again: the report, later lines of its files, a truncated last line.

    The error that ended an earlier attempt after its report goes with the report.
    """
    for file in (run.report, run.after, run.trained, run.error):
        file.unlink(missing_ok=True)
    for file in (run.metrics, run.samples):
        if file.exists():
            write_text(file, "".join(f"{line}\n" for line, row in rows_of(file) if row["step"] <= step))
