"""Held-out loss: the mean over the supervised tokens of all held-out rows, independent of batches; also by source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Objective, Progress
from smollm3_finetune.data.examples import Examples
from smollm3_finetune.evaluation.row_groups import by_row
from smollm3_finetune.evaluation.row_losses import Loss, RowLosses, joined, measure_rows
from smollm3_finetune.inference.precision import autocast

if TYPE_CHECKING:
    from torch import nn

    from smollm3_finetune.reference.computed import Refer


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The held-out rows of a run, and everything needed to measure its model on them."""

    examples: Sequence[Examples]
    """One for each source."""
    rows: Sequence[Sequence[int]]
    """For each source, the number of examples of each row."""
    titles: Sequence[str]
    model: nn.Module
    objective: Objective
    collate: Callable[[list[dict[str, Any]]], Any]
    batch_size: int
    device: str
    dtype: str
    """The dtype of the run, which determines the precision of the measurement."""
    refer: Sequence[Refer] = ()
    """For each source, what adds the values of the reference to a batch; empty if the loss has no reference."""

    def measure_rows(self, progress: Progress) -> RowLosses:
        """The loss of each row."""
        count = sum(len(rows) for rows in self.rows)
        about = (self.model, self.objective)
        refer: Sequence[Refer | None] = [None] * len(self.examples) if not self.refer else self.refer
        with autocast(self.device, self.dtype), progress.task(f"measuring {count:,} held-out rows") as task:
            found = [
                measure_rows(*about, e, self.collate, self.batch_size, title=title, advance=task.advance, refer=add)
                for e, title, add in zip(self.examples, self.titles, refer, strict=True)
            ]
        return joined([by_row(losses, rows) for losses, rows in zip(found, self.rows, strict=True)])

    def measure(self, progress: Progress) -> dict[str, Any]:
        """Loss and perplexity over all supervised tokens, and the loss by source if there are several."""
        return self.measure_rows(progress).report()


def with_current_titles(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The results from before training with the current source titles: a resumed run may use other paths."""
    if "by_source" not in before:
        return dict(before)
    losses = zip(after.get("by_source", ()), before["by_source"].values(), strict=False)
    return {**before, "by_source": dict(losses)}


def held_out_loss(
    model: nn.Module,
    objective: Objective,
    examples: Examples | Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Any],
    batch_size: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> Loss:
    """The loss over all `examples`: the sum over `measure_rows`."""
    return measure_rows(model, objective, examples, collate, batch_size, advance=advance).loss
