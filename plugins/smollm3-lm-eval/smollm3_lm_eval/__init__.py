"""Evaluator `lm-eval`: the tasks of lm-evaluation-harness.

This module holds only the descriptor; torch and the harness are imported when tasks are opened.
"""

from __future__ import annotations

import re

from smollm3_finetune.api import EvaluatorSpec, Requires, hookimpl

NAME = re.compile(r"[\w:+-][\w:+.-]*(?<!\.)")
"""A name of the harness, such as `arc_easy` or `longproc_countdown_0.5k`."""
EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,7}$")


def claims(task: str) -> bool:
    """Whether a task is a YAML file or looks like a name of the harness: no path and no file of another kind."""
    if task.lower().endswith((".yaml", ".yml")):
        return True
    return NAME.fullmatch(task) is not None and EXTENSION.search(task) is None


@hookimpl
def smollm3_evaluators() -> list[EvaluatorSpec]:
    return [
        EvaluatorSpec(
            name="lm-eval",
            aliases=("lm-evaluation-harness",),
            same_since="0.1",
            summary="tasks of lm-evaluation-harness: its own by name, such as arc_easy, and local YAML files",
            factory="smollm3_lm_eval.evaluator:HarnessEvaluator",
            options="smollm3_lm_eval.options:HarnessOptions",
            requires=Requires(distributions=("lm-eval>=0.4.13,<0.5",)),
            claims=claims,
            # Lower than evaluators with names of their own, because it claims every name.
            rank=-10,
            api=2,
        )
    ]
