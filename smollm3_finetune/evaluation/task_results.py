"""The results of tasks: the scores of two models, paired by document, with a 95 % interval and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from smollm3_finetune.api import DocumentScore
from smollm3_finetune.errors import PluginError
from smollm3_finetune.evaluation.line import LEAST_ROWS, verdict_line
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.evaluation.verdict import Comparison, Verdict, compare


@dataclass(frozen=True, kw_only=True)
class PairedDocument:
    """One document of a task: the value of a metric with each model."""

    task: str
    document: str
    before: float | None
    """None: there is no other model."""
    after: float
    terms: int
    before_answer: Any = None
    after_answer: Any = None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One metric of a task, or of a group of tasks; values are those of the metric, not losses."""

    task: str
    metric: str
    higher_is_better: bool
    documents: int
    after: float
    before: float | None = None
    """None: there is no other model, and so no difference and no verdict."""
    difference: float | None = None
    """`after - before`."""
    low: float | None = None
    """The 95 % interval of the difference; None if it cannot be estimated."""
    high: float | None = None
    verdict: Verdict | None = None
    smallest_difference: float | None = None
    """The smallest true difference that so many documents show with a probability of 80 %."""
    documents_for_half: int | None = None
    """How many such documents show half of it."""
    tasks: tuple[str, ...] = ()
    """The tasks of a group; empty for a single task."""
    by_document: tuple[PairedDocument, ...] = field(default=(), repr=False)

    def as_json(self, documents: bool = True) -> dict[str, Any]:
        """All values as JSON represents them. `documents`: also each document, but not those of a group again."""
        found = asdict(self)
        found["tasks"] = list(self.tasks)
        pairs = found.pop("by_document")
        if documents and not self.tasks:
            found["by_document"] = pairs
        return found

    def line(self) -> str:
        """For example `arc_easy acc 0.412 → 0.437 (+0.025 ± 0.018, better)`."""
        if self.before is None or self.difference is None:
            return f"{self.task} {self.metric} {self.after:.3f}"
        few = f": {self.documents} of at least {LEAST_ROWS} documents" if self.documents < LEAST_ROWS else ""
        return f"{self.task} {self.metric} {verdict_line(vars(self), few)}"


Key = tuple[str, str]
"""The task, or the group, and the metric."""


def _by_metric(scores: Sequence[DocumentScore]) -> dict[Key, list[DocumentScore]]:
    """The scores of each task and metric; then those of each group that has several tasks."""
    found: dict[Key, list[DocumentScore]] = {}
    groups: dict[Key, list[DocumentScore]] = {}
    for score in scores:
        found.setdefault((score.task, score.metric), []).append(score)
        if score.group:
            groups.setdefault((score.group, score.metric), []).append(score)
    several = {key: of for key, of in groups.items() if len({s.task for s in of}) > 1 and key not in found}
    return {**several, **found}


def unpaired(scores: Sequence[DocumentScore]) -> list[TaskResult]:
    """The results of one model. A metric is the mean over the terms of its documents."""
    results = []
    for (task, metric), mine in _by_metric(scores).items():
        terms = sum(s.terms for s in mine)
        if not terms:
            continue
        pairs = tuple(
            PairedDocument(task=s.task, document=s.document, before=None, after=s.value, terms=s.terms,
                           after_answer=s.answer)
            for s in mine
        )  # fmt: skip
        results.append(
            TaskResult(
                task=task,
                metric=metric,
                higher_is_better=mine[0].higher_is_better,
                documents=len(mine),
                after=sum(s.value for s in mine) / terms,
                tasks=_tasks(task, mine),
                by_document=pairs,
            )
        )
    return results


def paired(who: str, before: Sequence[DocumentScore], after: Sequence[DocumentScore], *, seed: int) -> list[TaskResult]:
    """The results of two models on the same documents. Raises PluginError, which names `who`, if they differ."""
    others = {(s.task, s.metric, s.document): s for s in before}
    _check_pairs(who, others, after)
    results = []
    for (task, metric), mine in _by_metric(after).items():
        pairs = [(others[s.task, s.metric, s.document], s) for s in mine]
        found = _compared(pairs, seed)
        if found is not None:
            results.append(_result(task, metric, found, pairs))
    return results


def _check_pairs(
    who: str, before: Mapping[tuple[str, str, str], DocumentScore], after: Sequence[DocumentScore]
) -> None:
    seen = {(s.task, s.metric, s.document): s for s in after}
    if odd := next(iter(before.keys() ^ seen.keys()), None):
        task, metric, document = odd
        raise PluginError(
            f"{who}: evaluate() returned {metric} of document {document} of {task} for one model only",
            hint="return the same documents and metrics for every model",
        )
    for key, score in seen.items():
        other = before[key]
        if (score.terms, score.higher_is_better) != (other.terms, other.higher_is_better):
            raise PluginError(
                f"{who}: {score.metric} of document {score.document} of {score.task} has different terms for the two "
                f"models: {other.terms} and {score.terms}",
                hint="terms and higher_is_better must not depend on the model",
            )


Pairs = Sequence[tuple[DocumentScore, DocumentScore]]


def _compared(pairs: Pairs, seed: int) -> Comparison | None:
    """The comparison of the values as losses: those of a metric for which higher is better are negated."""
    tasks = list(dict.fromkeys(s.task for _, s in pairs))
    sign = -1.0 if pairs[0][1].higher_is_better else 1.0
    sources = np.array([tasks.index(s.task) for _, s in pairs], dtype=np.int64)
    terms = np.array([s.terms for _, s in pairs], dtype=np.int64)

    def losses(which: int) -> RowLosses:
        sums = np.array([sign * pair[which].value for pair in pairs], dtype=np.float64)
        return RowLosses(sums=sums, terms=terms, sources=sources, titles=tuple(tasks))

    return compare(losses(0), losses(1), seed=seed) if terms.sum() else None


def _result(task: str, metric: str, found: Comparison, pairs: Pairs) -> TaskResult:
    higher = pairs[0][1].higher_is_better
    sign = -1.0 if higher else 1.0
    ends = [None if end is None else sign * end + 0.0 for end in (found.low, found.high)]  # + 0.0: no negative zero
    low, high = reversed(ends) if higher else ends
    return TaskResult(
        task=task,
        metric=metric,
        higher_is_better=higher,
        documents=len(pairs),
        before=sign * found.before + 0.0,
        after=sign * found.after + 0.0,
        difference=sign * found.difference + 0.0,
        low=low,
        high=high,
        verdict=found.verdict,
        smallest_difference=found.smallest_difference,
        documents_for_half=found.rows_for_half,
        tasks=_tasks(task, [after for _, after in pairs]),
        by_document=tuple(_documents(pairs)),
    )


def _documents(pairs: Pairs) -> Iterator[PairedDocument]:
    for before, after in pairs:
        yield PairedDocument(
            task=after.task, document=after.document, before=before.value, after=after.value, terms=after.terms,
            before_answer=before.answer, after_answer=after.answer,
        )  # fmt: skip


def _tasks(name: str, scores: Sequence[DocumentScore]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(s.task for s in scores))
    return () if found == (name,) else found
