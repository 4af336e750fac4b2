"""The losses of the held-out rows of a finished run, in after.json: two runs are compared without their models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smollm3_finetune.errors import ModelError
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.files.json import read_json
from smollm3_finetune.runs.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class SavedLosses:
    """The losses by row of the adapter that a run published."""

    content: str
    """A hash of the tokens of the rows: losses of equal rows can be compared."""
    rows: RowLosses


def after_json(rows: RowLosses, content: str) -> dict[str, Any]:
    """The content of after.json."""
    loss = rows.loss
    about = {"held_out_loss": loss.mean if loss.terms else None, "held_out_rows": content}
    return {**about, "rows": rows.as_json()}


def saved_losses(run: RunDir) -> SavedLosses | None:
    """The losses of a finished run; None if there is no usable after.json, as in a run of an earlier version."""
    try:
        about = read_json(run.after)
    except ModelError:
        return None
    content, rows = about.get("held_out_rows"), about.get("rows")
    if not isinstance(content, str) or not isinstance(rows, dict) or not isinstance(rows.get("rows_by_source"), list):
        return None
    counts = [count for count in rows["rows_by_source"] if count]  # sources without held-out rows do not matter
    losses = RowLosses.from_json({**rows, "rows_by_source": counts}, [str(number) for number in range(len(counts))])
    return None if losses is None else SavedLosses(content=content, rows=losses)
