"""The command that trains a run again so that what is trained is what is shipped."""

from __future__ import annotations

from pathlib import Path

from smollm3_finetune.api import options_dict
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.evaluation.retained import ship_as_line
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.shipping.target import base_problem, can_be_trained_for, same_format, training_env

DEPTH = 3
"""The directories above an adapter in which its run is looked for: a checkpoint is at RUN/checkpoints/checkpoint-N."""


def ship_as_command(plan: ModelPlan, choice: SelectedComponent) -> str | None:
    """The command; None if the run would be refused, is not known, or was trained for exactly this format already."""
    if plan.saved is None or plan.adapter is None or plan.new_tokens:
        return None
    env = training_env(plan.context.device)
    adapter = refined(plan.adapter, env)
    if not (adapter.ships and adapter.merges) or not can_be_trained_for(choice, env):
        return None
    if base_problem(choice, plan.quantizer, env) is not None:
        return None
    options = choice.changed_options()
    if plan.ship is not None and plan.ship.record is not None:
        if same_format(choice, plan.ship.record):
            return None
        if (
            plan.ship.chosen.component.full_name == choice.component.full_name
        ):  # the options of the run hold where none are stated
            own, changed = options_dict(choice.options), plan.ship.chosen.changed_options()
            options = {name: value for name, value in own.items() if name in options or name in changed}
    config = run_config(plan.saved.path)
    return None if config is None else ship_as_line(config, choice.spec.name, options)


def run_config(adapter: Path) -> Path | None:
    """The configuration of the run that an adapter is in; None if it is in none."""
    return next((d / "run.yaml" for d in adapter.parents[:DEPTH] if (d / "run.yaml").is_file()), None)
