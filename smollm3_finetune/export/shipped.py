"""Exports of runs that were trained with `train.ship_as`: the grids of the run, and the gate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, Check, given, options_dict
from smollm3_finetune.components.selection import SelectedComponent, with_options
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ModelError
from smollm3_finetune.merge.report import Merged
from smollm3_finetune.shipping.gate import check_weights, of_model
from smollm3_finetune.shipping.install import with_grids
from smollm3_finetune.shipping.target import ShipPlan, same_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "trained weights"
"""The name of the check."""


def with_trained_options(choice: SelectedComponent, ship: ShipPlan | None) -> SelectedComponent:
    """The exporter with the options that the adapter was trained for, where a user set no other ones."""
    if ship is None or ship.chosen.component.full_name != choice.component.full_name or ship.is_quantizer:
        return choice
    own, trained = options_dict(choice.options), ship.config()
    stated = {name: own[name] for name in given(choice.options)}
    options = {**trained.options, **stated}
    known = trained.set_options() | frozenset(stated)
    return with_options(choice.component, ComponentConfig(options=options, given=known))


def trained_for(choice: SelectedComponent, ship: ShipPlan | None, merged: Merged | None) -> ShipPlan | None:
    """The format of the run, if the exporter writes exactly it and the adapter was merged into its own base."""
    if ship is None or ship.record is None or merged is None or merged.own_base is False:
        return None
    return ship if same_format(choice, ship.record) else None


def not_compared(choice: SelectedComponent, ship: ShipPlan | None, merged: Merged | None) -> tuple[Check, str] | None:
    """The check that is not carried out for an adapter that was trained for a format, and the warning about it.

    None if there is no such format, or the export is compared with it.
    """
    if ship is None or ship.record is None or trained_for(choice, ship, merged) is not None:
        return None
    if same_format(choice, ship.record):
        why = "the adapter was trained on another base, whose grids are not those of this one"
        return Check(name=NAME, passed=None, says=f"not compared: {why}"), f"the weights are not compared: {why}"
    changed = ", ".join(f"{name}={value}" for name, value in choice.changed_options().items())
    instead = f"{choice.spec.name} ({changed})" if changed else choice.spec.name
    says = f"not compared: the run was trained to be shipped as {ship.title()}"
    return Check(name=NAME, passed=None, says=says), ship.notice(instead)


def export_context(ship: ShipPlan | None, context: BuildContext) -> BuildContext:
    """The context for the exporter, with the grids of the run."""
    return context if ship is None else replace(context, grids=with_grids(ship, context).grids)


def check_exported(ship: ShipPlan, model: PreTrainedModel | None) -> Check:
    """Compare the written model, read back, with the weights of training, bit for bit.

    Raises ModelError that names the first layer that differs, or if the exporter does not read back what it writes.
    """
    assert ship.record is not None
    if model is None:
        raise ModelError(
            f"the export was refused and nothing was kept: {ship.title()} does not read back what it writes, so it "
            "cannot be compared with what training computed"
        )
    count = check_weights(ship.record, of_model(model), f"the export as {ship.title()}, read back,")
    figures: dict[str, Any] = {"layers": count}
    return Check(
        name=NAME, passed=True, says=f"{count} layers equal the weights of training bit for bit", figures=figures
    )
