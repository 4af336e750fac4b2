"""The reference of a run while it trains: its start is saved before the first step, its values are put into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from smollm3_finetune.api import ReferenceObjective, without_adapter
from smollm3_finetune.reference.computed import EachBatch, Refer
from smollm3_finetune.reference.start import Start, trained_parameters
from smollm3_finetune.reference.start_file import read_start, start_again, write_start

if TYPE_CHECKING:
    from smollm3_finetune.model.load import LoadedModel
    from smollm3_finetune.train.setup import Job


@dataclass(frozen=True, kw_only=True)
class RunReference:
    """What adds the values of the reference to the batches of a run."""

    training: Callable[[Any, Any], Any] | None = None
    """`(model, batch)` returns the batch with the values; None if there are none to compute in a step."""
    held_out: Sequence[Refer] = ()
    """The same for the held-out rows of each source, with the indices of the examples; empty without a reference."""


def reference_of(job: Job, loaded: LoadedModel) -> RunReference:
    """The reference of a run whose model is composed and has taken no step in this process.

    Raises ModelError if a resumed run needs its start and the file is missing or damaged.
    """
    plan = job.plan.reference
    if plan.kind == "none" or not hasattr(job.objective, "reference_values"):
        return RunReference()
    objective = cast("ReferenceObjective", job.objective)
    each = EachBatch(objective=objective, context=_start(job, loaded).at_start if plan.exchanged else without_adapter)
    return RunReference(training=each.in_training, held_out=[each] * len(job.tokens.held_out))


def _start(job: Job, loaded: LoadedModel) -> Start:
    """The start of the run: the current weights, which are saved, or those that a resumed run saved."""
    if job.checkpoint is not None:
        trained = trained_parameters(loaded.model)
        return Start(loaded.model, read_start(job.run.start, trained, start_again(job.run.path)))
    start = Start(loaded.model)
    if job.main:
        write_start(job.run.start, start.values())
    return start
