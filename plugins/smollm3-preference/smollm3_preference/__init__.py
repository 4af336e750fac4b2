"""Objectives that compare answers: `dpo`, `apo-zero`, `apo-down`, `kto`, `orpo`, `simpo` and `cpo`.

This module holds only the descriptors; torch is imported when a run uses one of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from smollm3_finetune.api import Env, ObjectiveSpec, hookimpl


def refine(spec: ObjectiveSpec, options: Any, env: Env) -> ObjectiveSpec:
    """The descriptor with the reference that the options name."""
    return dataclasses.replace(spec, reference=options.reference)


def _pairs(name: str, options: str, factory: str, summary: str, **more: Any) -> ObjectiveSpec:
    return ObjectiveSpec(
        name=name,
        same_since="0.1",
        summary=summary,
        factory=f"smollm3_preference.methods:{factory}",
        options=f"smollm3_preference.options:{options}",
        fields=("rejected",),
        api=2,
        **more,
    )


@hookimpl
def smollm3_objectives() -> list[ObjectiveSpec]:
    compared: dict[str, Any] = {"reference": "start", "refine": refine}
    return [
        _pairs("dpo", "DPOOptions", "DPO", "direct preference optimization: sigmoid, hinge, ipo, robust", **compared),
        _pairs(
            "apo-zero", "APOOptions", "APOZero",
            "anchored preference optimization, answers better than the model's own", **compared,
        ),
        _pairs(
            "apo-down", "APOOptions", "APODown",
            "anchored preference optimization, answers worse than the model's own", **compared,
        ),
        ObjectiveSpec(
            name="kto",
            same_since="0.1",
            summary="Kahneman-Tversky optimization: single answers that are labeled good or bad",
            factory="smollm3_preference.kto:KTO",
            options="smollm3_preference.options:KTOOptions",
            fields=("desirable",),
            uses_labels=True,
            batch_term="the KL term",
            api=2,
            **compared,
        ),
        _pairs("orpo", "ORPOOptions", "ORPO", "odds ratio preference optimization, without a reference"),
        _pairs("simpo", "SimPOOptions", "SimPO", "simple preference optimization, without a reference"),
        _pairs("cpo", "CPOOptions", "CPO", "contrastive preference optimization, without a reference"),
    ]  # fmt: skip
