"""The reference of a run while it trains: its start is saved before the first step, its values are put into batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from smollm3_finetune.api import ReferenceObjective, without_adapter
from smollm3_finetune.batching.numbered import collating_numbered
from smollm3_finetune.cache.use import record_uses
from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.json import json_object, write_json
from smollm3_finetune.files.room import check_room
from smollm3_finetune.model.device import free_memory
from smollm3_finetune.progress import Silent
from smollm3_finetune.reference.computed import NAME, EachBatch, Refer
from smollm3_finetune.reference.once import Once, digest_of, identity_of, key_of, values_once
from smollm3_finetune.reference.other_model import loaded_model
from smollm3_finetune.reference.start import Start
from smollm3_finetune.reference.start_file import read_start, start_again, write_start
from smollm3_finetune.reference.whole import Evaluated, looked_up

if TYPE_CHECKING:
    from torch import nn

    from smollm3_finetune.batching.strategy import Batches
    from smollm3_finetune.model.load import LoadedModel
    from smollm3_finetune.shipping.install import ShippedAdapted
from smollm3_finetune.train.setup import Job


def _unchanged(batches: Batches) -> Batches:
    return batches


@dataclass(frozen=True, kw_only=True)
class RunReference:
    """What adds the values of the reference to the batches of a run."""

    in_step: Callable[[Any, Any], Any] | None = None
    """`(model, batch)` returns the batch with the values; None if there are none to compute in a step."""
    held_out: Sequence[Refer] = ()
    """The same for the held-out rows of each source, with the indices of the examples; empty without a reference."""
    in_training: Callable[[Batches], Batches] = field(default=_unchanged)
    """The batches of the training examples, with stored values."""


def computed_before(job: Job) -> Once | None:
    """The values of another model, which is freed before the trained one is loaded; None for any other reference.

    Raises ModelError if a resumed run was started with other weights of the model.
    """
    other, train = job.plan.reference.model_of(job.plan.model), job.plan.config.train
    if other is None:
        return None
    weights = {"model": other.source.fingerprint, "quant": other.quantizer.component.full_name}
    known = json_object(job.run.reference).get("weights")
    if job.checkpoint is not None and known not in (None, weights):
        raise ModelError(
            f"the reference model {other.ref!r} has other weights than when the run {job.run.path} started",
            hint=f"restore the model, or {start_again(job.run.path)}",
        )
    once = _once(job, weights, lambda: loaded_model(other, _objective(job), job.renderer.tokenizer, train))
    free_memory()
    return once


def reference_of(job: Job, loaded: LoadedModel, batches: Batches, before: Once | None) -> RunReference:
    """The reference of a run whose model is composed and has taken no step in this process.

    Raises ModelError if a resumed run needs its start and the file is missing or damaged.
    """
    plan = job.plan.reference
    if plan.kind == "none" or not hasattr(job.objective, "reference_values"):
        return RunReference()
    if before is not None:
        return _stored(before)
    start = _start(job, loaded) if plan.exchanged else None
    context = without_adapter if start is None else start.at_start
    if not plan.once:
        each = EachBatch(objective=_objective(job), context=context)
        return RunReference(in_step=each.in_step, held_out=[each] * len(job.tokens.held_out))
    weights: dict[str, Any] = {"base": loaded.base.fingerprint}
    if start is not None:
        weights |= {"start": digest_of(start.values()), "adapter": identity_of(job.plan.model.adapter)}
        if isinstance(loaded.adapted, ShippedAdapted):  # the start computes as shipped too
            grids = {f"{layer}/{name}": t for layer, grid in loaded.adapted.grids().items() for name, t in grid.items()}
            weights |= {"ship_as": loaded.adapted.plan.about(), "grids": digest_of(grids)}
    about = loaded.plan.context

    @contextlib.contextmanager
    def reference() -> Iterator[Evaluated]:
        with context(loaded.model) as model:
            yield Evaluated(
                model=model, objective=_objective(job), batches=batches, batch_size=job.plan.config.train.batch_size,
                device=about.device, dtype=about.dtype,
            )  # fmt: skip

    return _stored(_once(job, weights, reference))


def _once(job: Job, weights: dict[str, Any], reference: Callable[[], Any]) -> Once:
    """The stored values of all examples; the run keeps their cache entry from being deleted."""
    context, tokens, objective = job.plan.model.context, job.tokens, _objective(job)
    key = key_of(weights, job.plan.objective, list(objective.reference_options), tokens.content, context.dtype)
    progress = context.progress if job.main else Silent()
    once = values_once(context.cache, key, tokens.train, tokens.held_out, reference, progress)
    if job.main:
        record_uses(job.run.path, context.cache)
        if job.checkpoint is None:
            write_json(job.run.reference, {"weights": weights, "entry": f"{once.entry.parent.name}/{once.entry.name}"})
    return once


def _stored(once: Once) -> RunReference:
    """What adds stored values to the batches; the Trainer moves those of training batches to the device."""

    def add(batch: Any, numbers: Sequence[int]) -> Any:
        return {**batch, NAME: [once.train[n] for n in numbers]}

    return RunReference(
        in_training=lambda batches: collating_numbered(batches, add),
        held_out=[looked_up(values) for values in once.held_out],
    )


def _objective(job: Job) -> ReferenceObjective:
    return cast("ReferenceObjective", job.objective)


def _start(job: Job, loaded: LoadedModel) -> Start:
    """The start of the run: the current weights, which are saved, or those that a resumed run saved."""
    model: nn.Module = loaded.model
    if job.checkpoint is not None:
        return Start(model, read_start(job.run.start, model, start_again(job.run.path)))
    start = Start(model)
    if job.main:
        values = start.values()
        needed = sum(value.numel() * value.element_size() for value in values.values())
        check_room(job.run.path, needed, "the reference, the trained weights before the first step,")
        write_start(job.run.start, values)
    return start
