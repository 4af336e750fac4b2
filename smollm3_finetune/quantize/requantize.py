"""Writes a quantized checkpoint of a merged model, with any quantizer that writes checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Base, BuildContext, CheckpointQuantizer, ModelSource, Purpose
from smollm3_finetune.components.kinds import QUANTIZER
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent, choose
from smollm3_finetune.errors import ConfigError, IncompatibleError, SmolLM3Error, raise_all
from smollm3_finetune.model.load import load_base
from smollm3_finetune.model.plan import NO_QUANTIZER
from smollm3_finetune.model_files.stops import keep_stops
from smollm3_finetune.model_files.writing import copy_rest
from smollm3_finetune.shipping.install import with_grids
from smollm3_finetune.shipping.target import ShipPlan, same_format

if TYPE_CHECKING:
    from torch import nn

Calibration = Callable[[], Sequence[Sequence[int]]]
"""Returns the calibration rows as token ids."""


@dataclass(frozen=True, kw_only=True)
class Requantizer:
    """A selected quantizer that writes checkpoints, created but not used yet."""

    choice: SelectedComponent
    quantizer: CheckpointQuantizer
    ship: ShipPlan | None = None
    """Set if the adapter was trained for exactly this format: weights are rounded to the grids of its run."""

    def write(self, source: ModelSource, out: Path, context: BuildContext, calibration: Calibration | None) -> None:
        """Write the quantized checkpoint of `source`, a merged model, into the empty directory `out`.

        `context.dtype` is the dtype of the weights that are not quantized.
        """
        more: Any = {} if calibration is None else {"calibration": calibration}
        if self.ship is not None:
            context = with_grids(self.ship, context)
        with attributed_to(self.choice.component):
            self.quantizer.write(source, out, replace(context, purpose=Purpose.QUANTIZE, **more))
        copy_rest(source.path, out, context.progress.say)
        keep_stops(source.path, out)

    @property
    def needs_calibration(self) -> bool:
        return self.ship is None and _needs_calibration(self.choice)

    def load(self, source: ModelSource, context: BuildContext) -> nn.Module:
        """The model in a checkpoint that `write` has written."""
        return self.load_base(source, context).model

    def load_base(self, source: ModelSource, context: BuildContext) -> Base:
        """The model in a checkpoint that `write` has written, and the operations of its layers."""
        return load_base(self.choice, self.quantizer, source, replace(context, purpose=Purpose.INFER))


def choose_requantizer(
    registry: Registry,
    name: str,
    options: Mapping[str, Any],
    device: str,
    *,
    has_rows: bool,
    ship: ShipPlan | None = None,
) -> Requantizer:
    """The quantizer that `--requantize` selects, checked before any weights are read.

    `ship` is the format that the adapter was trained for, if any; its options are those that `options` does not state.
    `has_rows`: whether there are rows for calibration. Raises IncompatibleError if it does not write checkpoints,
    ConfigError if it needs calibration rows and there are none, and the errors of selecting and creating a component.
    """
    origins = {f"{QUANTIZER.section}.{key}": f"--requantize-opt {key}" for key in options}
    if ship is not None and not (ship.is_quantizer and registry.find(QUANTIZER, name) == ship.chosen.component):
        ship = None
    if ship is not None:
        options = {**ship.config().options, **options}
    choice = choose(registry, QUANTIZER, name, options, origins)
    if ship is None or ship.record is None or not same_format(choice, ship.record):
        ship = None
    component = choice.component
    raise_all(requirement_problems(component.title, component.spec.requires, device))
    made = choice.create()
    if not isinstance(made, CheckpointQuantizer):
        raise IncompatibleError(
            f"--requantize {name} does not write checkpoints: {made_when_loaded(choice)}",
            hint="omit --requantize"
            if component.spec.name == NO_QUANTIZER
            else f"merge without --requantize, then load the merged model with {QUANTIZER.flag} {name}",
        )
    if _needs_calibration(choice) and not has_rows and ship is None:
        raise ConfigError(
            f"--requantize {name} needs calibration rows, but there are none",
            hint=f"merge a run, which provides rows; or merge, then: smollm3 quantize DIR {QUANTIZER.flag} {name}",
        )
    return Requantizer(choice=choice, quantizer=made, ship=ship)


def writers(registry: Registry) -> list[str]:
    """The names of the installed quantizers that write checkpoints, for a hint: imports those that read checkpoints."""
    found = []
    for component in registry.of(QUANTIZER):
        if getattr(component.spec, "claims", None) is not None:
            with contextlib.suppress(SmolLM3Error):
                if isinstance(component.create(component.options_class()()), CheckpointQuantizer):
                    found.append(component.spec.name)
    return found


def made_when_loaded(choice: SelectedComponent) -> str:
    """What a quantizer that writes no checkpoints does, as a clause."""
    name = choice.component.spec.name
    return "it does not quantize" if name == NO_QUANTIZER else "it quantizes the weights while they are loaded"


def _needs_calibration(choice: SelectedComponent) -> bool:
    return bool(getattr(choice.component.spec, "needs_calibration", False))
