"""The evaluator: opens tasks of the harness once, and returns the scores of each model by document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from smollm3_finetune.api import ConfigError, DocumentScore, EvaluatedModel, EvaluationContext
from smollm3_lm_eval.options import HarnessOptions
from smollm3_lm_eval.quiet import quiet
from smollm3_lm_eval.tasks import load_tasks


class HarnessEvaluator:
    def __init__(self, options: HarnessOptions) -> None:
        self.options = options

    def open(self, tasks: Sequence[str], ctx: EvaluationContext) -> OpenedHarness:
        """Load the tasks and their documents. Raises ConfigError or DataError for one that cannot be used."""
        ctx.progress.say("lm-eval: loading the tasks")
        with quiet(ctx.progress):
            found = load_tasks(tasks, self.options, ctx)
            opened = OpenedHarness(found, self.options, ctx)
        for name, task in opened.tasks.items():
            usable, others = opened.metrics(name)
            if not usable:
                raise ConfigError(
                    f"lm-eval computes {', '.join(others) or 'no metric'} of {name!r} over all documents together, so "
                    "models cannot be compared by document",
                    hint=f"use a task with a metric such as acc or exact_match: output_type is {task.OUTPUT_TYPE}",
                )
            if others:
                ctx.progress.say(f"lm-eval: {name} without {', '.join(others)}, which are not means over documents")
        return opened


class OpenedHarness:
    """Loaded tasks of the harness."""

    def __init__(self, found: Mapping[str, tuple[Any, str]], options: HarnessOptions, ctx: EvaluationContext) -> None:
        self.tasks = {name: task for name, (task, _) in found.items()}
        self.groups = {name: group for name, (_, group) in found.items()}
        self.options, self.ctx = options, ctx

    def evaluate(self, model: EvaluatedModel) -> Iterator[DocumentScore]:
        """Yield the scores of all documents, in the harness's own metrics."""
        from lm_eval.evaluator import evaluate

        from smollm3_lm_eval.model import ComposedModel

        options = self.options
        with quiet(self.ctx.progress):
            for task in self.tasks.values():
                task.set_fewshot_seed(seed=self.ctx.seed)
            found: Any = evaluate(
                lm=ComposedModel(model, options, self.ctx.batch_size),
                task_dict={"tasks": self.tasks},
                limit=self.ctx.limit,
                bootstrap_iters=0,
                system_instruction=options.system,
                apply_chat_template=options.chat_template,
                fewshot_as_multiturn=options.chat_template and options.fewshot_as_multiturn,
            )
        for name, samples in found["samples"].items():
            for sample in samples:
                yield from self._scores(name, sample)

    def metrics(self, name: str) -> tuple[list[str], list[str]]:
        """The metrics of a task that are means over documents, and the others."""
        aggregations = self.tasks[name].aggregation()
        usable = [metric for metric, function in aggregations.items() if _rule(function) is not None]
        return usable, [metric for metric in aggregations if metric not in usable]

    def _scores(self, name: str, sample: Mapping[str, Any]) -> Iterator[DocumentScore]:
        task = self.tasks[name]
        aggregations, higher = task.aggregation(), task.higher_is_better()
        filtered = "" if sample["filter"] == "none" else f",{sample['filter']}"
        for metric in sample["metrics"]:
            # The harness takes the mean of a metric that its task returns without an aggregation.
            rule = _rule(aggregations[metric]) if metric in aggregations else _mean
            found = None if rule is None else rule(metric, sample[metric])
            if found is None:
                continue
            shown, value, terms = found
            yield DocumentScore(
                task=name,
                document=str(sample["doc_id"]),
                metric=shown + filtered,
                value=value,
                terms=terms,
                higher_is_better=bool(higher.get(metric, True)),
                group=self.groups[name],
                answer=_plain(sample["filtered_resps"]),
            )


Rule = Callable[[str, Any], tuple[str, float, int] | None]
"""From a metric and its value on a document: the metric that is a mean, the value, its terms; None if it is not one."""


def _rule(aggregation: Any) -> Rule | None:
    """How a value enters the mean that an aggregation of the harness computes; None if it computes something else."""
    from lm_eval.api import metrics

    rules: Mapping[Any, Rule] = {
        metrics.mean: _mean,
        metrics.perplexity: lambda metric, ll: (f"log {metric}", -float(ll), 1),
        metrics.weighted_perplexity: lambda metric, pair: (f"log {metric}", -float(pair[0]), int(pair[1])),
        metrics.bits_per_byte: lambda metric, pair: (metric, -float(pair[0]) / math.log(2), int(pair[1])),
    }
    try:
        return rules.get(aggregation)
    except TypeError:  # an object that cannot be a key
        return None


def _mean(metric: str, value: Any) -> tuple[str, float, int] | None:
    number = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    return (metric, float(number), 1) if isinstance(number, Real) else None


def _plain(value: Any) -> Any:
    """A value as JSON represents it."""
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    plain = isinstance(value, str | int | bool | None) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)
