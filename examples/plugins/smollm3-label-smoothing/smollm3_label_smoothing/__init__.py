"""Objective `label-smoothing` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import ObjectiveSpec, hookimpl


@hookimpl
def smollm3_objectives() -> list[ObjectiveSpec]:
    return [
        ObjectiveSpec(
            name="label-smoothing",
            summary="cross-entropy over the assistant's tokens, with smoothed labels",
            factory="smollm3_label_smoothing.objective:SmoothedObjective",
            options="smollm3_label_smoothing.options:SmoothedOptions",
            api=2,
        )
    ]
