"""Carries out an evaluation: each model is loaded once, measured, and freed before the next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smollm3_finetune import stopping
from smollm3_finetune.api import DocumentScore, Objective, Progress, UnsupportedOp
from smollm3_finetune.batching.strategy import batching
from smollm3_finetune.errors import ModelError, SmolLM3Error, VerdictError
from smollm3_finetune.evaluation.measures import compare_measures
from smollm3_finetune.evaluation.null_adapter import composed_with_notes, null_model
from smollm3_finetune.evaluation.plan import PlannedEvaluation, PlannedSubject
from smollm3_finetune.evaluation.reference_values import with_values
from smollm3_finetune.evaluation.row_groups import by_row
from smollm3_finetune.evaluation.row_losses import RowLosses, joined, measure_rows
from smollm3_finetune.evaluation.sanity import answers, shares
from smollm3_finetune.evaluation.tasks import compare_tasks, measure_tasks
from smollm3_finetune.evaluation.verdict import Comparison, compare
from smollm3_finetune.inference.decoding import Answer
from smollm3_finetune.inference.precision import autocast
from smollm3_finetune.model.device import free_memory
from smollm3_finetune.model.load import LoadedModel, compose
from smollm3_finetune.reference.whole import looked_up

SHOWN = 3
"""Prompts whose answers are part of the report."""


@dataclass(frozen=True)
class Observed:
    """What was measured of one model."""

    losses: RowLosses
    """Of each row, also of rows that are left out of the comparison."""
    answers: Sequence[Answer]
    scores: Sequence[DocumentScore] = ()
    """Of tasks, by document and metric."""


def evaluate(planned: PlannedEvaluation, progress: Progress) -> dict[str, Any]:
    """Measure the model, and its base or the model it is compared with; returns the report.

    Losses and differences are in nats per term of the loss (for most objectives: per supervised token); "before" is the
    base or the other model, "after" the evaluated one. Raises ModelError if a loss is not finite.
    """
    with contextlib.ExitStack() as stack:
        return _evaluated(planned, progress, stack)


def _evaluated(planned: PlannedEvaluation, progress: Progress, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The report; `stack` ends when nothing is measured any more."""
    began = time.monotonic()
    subject, against = planned.subject, planned.against
    planned = with_values(planned, None, progress, stack)
    tuned: dict[str, Any] | None = None
    if planned.settings.null_adapter and against is None and subject.has_base():
        loaded, tuned = composed_with_notes(subject.plan, check_base=subject.check_base)
    else:
        loaded = compose(subject.plan, check_base=subject.check_base)
    planned = with_values(planned, loaded, progress, stack)
    after, before = _observed(planned, subject, loaded, subject.title, progress), None
    if against is None and subject.has_base():
        with _disabled(subject, loaded) as alone:
            if alone:
                before = _observed(planned, subject, loaded, "the base", progress)
    del loaded
    free_memory()
    if before is None and (other := _other(subject, against)) is not None:
        before = _observed(planned, other, compose(other.plan, check_base=other.check_base), other.title, progress)
        free_memory()
    comparison = None if before is None else _compared(planned, before, after)
    null = None if tuned is None or before is None else _null(planned, before, tuned, progress)
    return {
        **_about(planned),
        "before": None if before is None else _losses(planned, before),
        "after": _losses(planned, after),
        "comparison": None if comparison is None else comparison.as_json(),
        "line": None if comparison is None else comparison.line(),
        "per_token": after.losses.per_token,
        "measures": _measures(planned, before, after),
        "answers": _answers(planned, before, after),
        "null_adapter": null,
        "tasks": _tasks(planned, before, after),
        "row_losses": _rows(planned, before, after),
        "warnings": list(planned.warnings),
        "seconds": round(time.monotonic() - began, 1),
    }


def check_verdict(report: dict[str, Any], fail_if: str | None) -> None:
    """Raises VerdictError if the verdict is `worse`, with `not-better` if it is not `better`, or if there is none."""
    if fail_if is None:
        return
    if report["comparison"] is None:
        raise VerdictError(f"--fail-if {fail_if}: there is no verdict, because no rows were compared")
    verdict = report["comparison"]["verdict"]
    if verdict == "worse" or (fail_if == "not-better" and verdict != "better"):
        raise VerdictError(f"--fail-if {fail_if}: the verdict is {verdict!r}, compared with {report['against']}")


def _observed(
    planned: PlannedEvaluation, subject: PlannedSubject, loaded: LoadedModel, what: str, progress: Progress
) -> Observed:
    stopping.check()  # in case a library swallowed the request
    losses = _row_losses(planned, subject, loaded, what, progress)
    if not np.isfinite(losses.sums).all():
        raise ModelError(f"the held-out loss of {what} is not a finite number, so {what} is not usable")
    stopping.check()
    said: Sequence[Answer] = ()
    if planned.prompts:
        said = answers(loaded, subject.renderer, planned.prompts, planned.train.batch_size, progress)
    if planned.tasks is None:
        return Observed(losses, said)
    mode = subject.template_kwargs
    return Observed(losses, said, measure_tasks(loaded, planned.tasks, renderer=subject.renderer, template_kwargs=mode))


def _row_losses(
    planned: PlannedEvaluation, subject: PlannedSubject, loaded: LoadedModel, what: str, progress: Progress
) -> RowLosses:
    """The loss of each row; that of a row with several examples, such as chunks of a text, is their sum."""
    if not planned.rows.rows:
        none = np.empty(0, dtype=np.int64)
        return RowLosses(sums=np.empty(0), terms=none, sources=none, titles=())
    objective: Objective = planned.make_objective()
    context, batch_size = loaded.plan.context, planned.train.batch_size
    rows, parts, first = planned.rows, [], 0
    text = f"measuring {what} on {len(rows.rows):,} held-out rows"
    with contextlib.ExitStack() as stack:
        stack.enter_context(autocast(context.device, context.dtype))
        tokenizer = subject.renderer.tokenizer
        collate = stack.enter_context(batching(planned.train, loaded, objective, tokenizer, lambda line: None))
        task = stack.enter_context(progress.task(text, sum(map(len, subject.examples))))
        for source in sorted({row.source for row in rows.rows}):
            mine = [e for row, e in zip(rows.rows, subject.examples, strict=True) if row.source == source]
            refer = None if planned.values is None else looked_up(planned.values, first)
            first += sum(map(len, mine))
            found = measure_rows(
                *(loaded.model, objective, [e for made in mine for e in made], collate, batch_size),
                title=rows.titles[source],
                advance=task.advance,
                refer=refer,
            )
            parts.append(by_row(found, [len(made) for made in mine]))
    return joined(parts)


@contextlib.contextmanager
def _disabled(subject: PlannedSubject, loaded: LoadedModel) -> Iterator[bool]:
    """Disable the adapter if it supports this; yields whether it is disabled."""
    with contextlib.ExitStack() as stack:
        alone = subject.disables()
        if alone:
            try:
                stack.enter_context(loaded.disabled())
            except UnsupportedOp:
                alone = False
        yield alone


def _other(subject: PlannedSubject, against: PlannedSubject | None) -> PlannedSubject | None:
    """The model to compare with: the one that was named, else the base; None if there is no adapter."""
    if against is not None or not subject.has_base():
        return against
    return replace(subject, title="the base", plan=replace(subject.plan, adapter=None, saved=None))


def _compared(planned: PlannedEvaluation, before: Observed, after: Observed) -> Comparison | None:
    return compare(before.losses, after.losses, seed=planned.settings.seed, excluded=planned.overlap.rows())


def _measures(planned: PlannedEvaluation, before: Observed | None, after: Observed) -> dict[str, Any]:
    """The objective's measures of the compared rows; "before" is the base or the other model."""
    seed, excluded = planned.settings.seed, planned.overlap.rows()
    earlier = None if before is None else before.losses
    found = compare_measures(earlier, after.losses, seed=seed, excluded=excluded)
    return {name: measure.as_json() for name, measure in found.items()}


def _null(
    planned: PlannedEvaluation, before: Observed, tuned: dict[str, Any], progress: Progress
) -> dict[str, Any] | None:
    """The held-out loss of a null adapter, compared with the base; or why there is none."""
    subject = planned.subject
    try:
        loaded = null_model(subject.plan, tuned, planned.settings.seed)
        losses = _row_losses(planned, subject, loaded, "a null adapter", progress)
    except SmolLM3Error as e:
        return {"unavailable": e.message}
    finally:
        free_memory()
    if not np.isfinite(losses.sums).all():
        return {"unavailable": "its loss is not a finite number"}
    found = _compared(planned, before, Observed(losses, ()))
    return None if found is None else {"comparison": found.as_json(), "line": found.line()}


def _about(planned: PlannedEvaluation) -> dict[str, Any]:
    """The parts of the report that are known before weights are read."""
    subject, against, rows = planned.subject, planned.against, planned.rows
    plan, settings = subject.plan, planned.settings
    named = {"exact": planned.overlap.exact, "near": planned.overlap.near}
    return {
        "model": subject.title,
        "against": against.title if against is not None else "its base" if subject.has_base() else None,
        "base": plan.ref,
        "quantizer": plan.quantizer.component.title,
        "adapter": None if plan.adapter is None else plan.adapter.component.title,
        "device": plan.context.device,
        "dtype": plan.context.dtype,
        "objective": planned.objective.component.spec.name,
        "rows": {
            "found": rows.found,
            "measured": len(rows.rows),
            "own": settings.rows is None,
            "limit": settings.limit,
            "seed": settings.seed,
            "empty": planned.empty,
        },
        "overlap": {
            kind: [{"row": rows.rows[i].where, "training_row": where} for i, where in sorted(found.items())]
            for kind, found in named.items()
        },
    }


def _losses(planned: PlannedEvaluation, observed: Observed) -> dict[str, Any]:
    """Loss and perplexity of the compared rows, and of those of each source."""
    compared = observed.losses.without(planned.overlap.rows())
    parts = {title: compared.of_source(i) for i, title in enumerate(compared.titles)}
    return {**_loss(compared), "by_source": {title: _loss(part) for title, part in parts.items() if len(part)}}


def _loss(losses: RowLosses) -> dict[str, Any]:
    found = losses.loss
    return {
        "rows": len(losses),
        "terms": found.terms,
        "held_out_loss": found.mean if found.terms else None,
        "perplexity": losses.perplexity if found.terms else None,
    }


def _answers(planned: PlannedEvaluation, before: Observed | None, after: Observed) -> dict[str, Any] | None:
    if not planned.prompts:
        return None
    prompts = planned.prompts
    both = {"before": None if before is None else before.answers, "after": after.answers}
    samples = [
        {"prompt": list(prompts.messages[i]), **{when: a[i].text for when, a in both.items() if a is not None}}
        for i in range(min(SHOWN, len(prompts)))
    ]
    return {
        "prompts": len(prompts),
        "max_new_tokens": prompts.max_new_tokens,
        **{when: None if found is None else shares(found) for when, found in both.items()},
        "samples": samples,
    }


def _tasks(planned: PlannedEvaluation, before: Observed | None, after: Observed) -> list[dict[str, Any]]:
    """The result of each task and metric, with its line; "before" is the base or the other model."""
    if planned.tasks is None:
        return []
    results = compare_tasks(planned.tasks, None if before is None else before.scores, after.scores)
    return [{**result.as_json(), "line": result.line()} for result in results]


def _rows(planned: PlannedEvaluation, before: Observed | None, after: Observed) -> list[dict[str, Any]]:
    """The summed loss of each row, with its location."""
    left_out = set(planned.overlap.rows())
    found = []
    for i, row in enumerate(planned.rows.rows):
        about = {"row": row.where, "terms": int(after.losses.terms[i]), "after": float(after.losses.sums[i])}
        about |= {} if before is None else {"before": float(before.losses.sums[i])}
        found.append({**about, "left_out": i in left_out})
    return found
