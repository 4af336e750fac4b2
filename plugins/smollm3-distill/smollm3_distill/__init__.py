"""Objective `distill`: the student learns the teacher's probabilities of its most probable tokens.

This module holds only the descriptor; torch is imported when the objective is used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from smollm3_finetune.api import ObjectiveSpec, hookimpl

if TYPE_CHECKING:
    from smollm3_distill.options import DistillOptions
    from smollm3_finetune.api import Env


def taught_by(spec: ObjectiveSpec, options: DistillOptions, env: Env) -> ObjectiveSpec:
    """The descriptor with the model that the option `teacher` names."""
    from smollm3_distill.options import BASE

    return replace(spec, reference_model=None if options.teacher == BASE else options.teacher)


@hookimpl
def smollm3_objectives() -> list[ObjectiveSpec]:
    return [
        ObjectiveSpec(
            name="distill",
            aliases=("distillation",),
            summary="the probabilities of a teacher's most probable tokens; by default the dense model teaches itself",
            factory="smollm3_distill.objective:Distillation",
            options="smollm3_distill.options:DistillOptions",
            reference="model",
            refine=taught_by,
            api=2,
        )
    ]
