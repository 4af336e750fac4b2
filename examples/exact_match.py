"""Evaluator `exact-match`: answers to the prompts of a JSONL file, compared with references.

smollm3 eval RUN -p examples/exact_match.py --tasks capitals.jsonl
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.api import ConfigError, DocumentScore, EvaluatorSpec, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class ExactMatchOptions:
    max_new_tokens: int = option(32, "Longest answer, in tokens.", ge=1)


@hookimpl
def smollm3_evaluators():
    return [
        EvaluatorSpec(
            name="exact-match",
            summary="answers to the prompts of a JSONL file, compared with references",
            factory="exact_match:ExactMatch",
            options="exact_match:ExactMatchOptions",
            claims=lambda task: task.endswith(".jsonl"),
            api=2,
        )
    ]


class ExactMatch:
    def __init__(self, options):
        self.options = options

    def open(self, tasks, ctx):
        self.tasks = {task: read(task)[: ctx.limit] for task in tasks}
        return self

    def evaluate(self, model):
        for task, rows in self.tasks.items():
            prompts = [[{"role": "user", "content": prompt}] for prompt, _ in rows]
            answers = model.answers(prompts, self.options.max_new_tokens)
            for number, ((_, reference), answer) in enumerate(zip(rows, answers, strict=True)):
                value = float(answer.strip() == reference.strip())
                yield DocumentScore(task=task, document=str(number), metric="exact_match", value=value, answer=answer)


def read(task):
    try:
        rows = [json.loads(line) for line in Path(task).read_bytes().splitlines()]
        return [(row["prompt"], row["reference"]) for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ConfigError(f"the task file {task!r} cannot be read: {e}", hint="--tasks FILE.jsonl") from e
