"""What `smollm3 plan` is asked: the prediction for a run, what fits, a comparison, a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.memory.compare import Comparison, adapters_to_compare, compare
from smollm3_finetune.memory.correction import Correction
from smollm3_finetune.memory.fit import Fit, fit
from smollm3_finetune.memory.predictor import Predictor, compared_with
from smollm3_finetune.memory.probe import Probe, check_probe, probe
from smollm3_finetune.memory.records import record_run
from smollm3_finetune.model_files.context_length import context_of

if TYPE_CHECKING:
    from smollm3_finetune.memory.memory_plan import MemoryPlan
    from smollm3_finetune.train.start import PlannedRun


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer for one run."""

    memory: MemoryPlan
    """Corrected."""
    uncorrected: MemoryPlan
    correction: Correction
    budget: int | None = None
    fit: Fit | None = None
    comparison: Comparison | None = None
    probe: Probe | None = None
    probe_predicted: MemoryPlan | None = None
    """The uncorrected prediction for the largest batch of the probe."""


def answer(
    planned: PlannedRun,
    *,
    budget: int | None = None,
    compares: bool = False,
    others: Sequence[str] = (),
    probe_steps: int | None = None,
    corrects: bool = True,
) -> Answer:
    """Predict the memory of a run, and what else is asked. `corrects`: by finished runs on this machine.

    Raises ConfigError if something is asked that cannot be answered for this run, before anything is predicted.
    """
    plan, registry = planned.plan, planned.registry
    if probe_steps is not None:
        check_probe(plan, probe_steps)
    adapters = adapters_to_compare(plan, registry, others) if compares else []
    predictor = Predictor(plan, registry, corrects=corrects)
    uncorrected, correction = predictor.own()
    memory = correction.applied(uncorrected)
    fitted = compared = measured = predicted = None
    if budget is not None and not compares and uncorrected.unknown:
        raise ConfigError(
            f"--fit has no prediction to search: {uncorrected.unknown[0]}", hint="to measure this run: --probe 3"
        )
    if budget is not None and not uncorrected.unknown:

        def predict(length: int, batch: int) -> MemoryPlan:
            return predictor.predict(plan, length, batch)

        context = context_of(plan.model.source.config)
        plan.model.context.progress.say("searching the longest rows and the largest batch that fit")
        fitted = fit(
            predict, budget, length=plan.config.data.max_length, batch=plan.config.train.batch_size, context=context
        )
    if compares:
        compared = compare(plan, registry, predictor.predict, adapters=adapters)
    if probe_steps is not None:
        measured = probe(plan, registry, probe_steps, plan.model.context.progress.say)
        predicted = compared_with(plan, registry, measured.memory)
        if predicted is not None:
            record_run(plan, measured.memory, predicted, "probe")
    return Answer(
        memory=memory,
        uncorrected=uncorrected,
        correction=correction,
        budget=budget,
        fit=fitted,
        comparison=compared,
        probe=measured,
        probe_predicted=predicted,
    )
