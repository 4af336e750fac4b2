"""From a run or a saved adapter to a planned merge. `smollm3 merge` and pipelines start here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from smollm3_finetune.api import Progress, Purpose
from smollm3_finetune.components.kinds import FORMATTER, OBJECTIVE
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.data.calibration import Calibration, plan_calibration
from smollm3_finetune.data.plan import select_rows
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.merge.prediction import PredictedRows, held_out_rows
from smollm3_finetune.merge.report import MergeSettings
from smollm3_finetune.merge.run import merge
from smollm3_finetune.model.load import build_context
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, plan_model, select_model
from smollm3_finetune.model.saved_adapter import read_calibration
from smollm3_finetune.quantize.requantize import Requantizer, choose_requantizer
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.versions import compare_versions


@dataclass(frozen=True, kw_only=True)
class PlannedMerge:
    """A merge whose names, options and rows were checked; no weights were read."""

    plan: ModelPlan
    settings: MergeSettings
    requantizer: Requantizer | None = None
    calibration: Calibration | None = None
    held_out: PredictedRows | None = None

    def merge(self) -> dict[str, Any]:
        """Merge and return the report; see `merge.run.merge`."""
        return merge(self.plan, self.settings, self.requantizer, self.calibration, self.held_out)


def plan_merge(
    registry: Registry,
    request: ModelRequest,
    settings: MergeSettings,
    *,
    run: RunDir | None,
    loaded: LoadedConfig | None,
    requantize: ComponentConfig | None,
    device: str,
    compute_dtype: str,
    progress: Progress,
) -> PlannedMerge:
    """Check a merge. `run` is the run of the adapter and `loaded` its configuration, if the adapter is of a run.

    With `requantize`, the result is a checkpoint quantized by it, calibrated on the rows of the run.
    """
    selected = select_model(registry, request)
    context = build_context(Purpose.MERGE, device, compute_dtype, 0, progress=progress)
    plan = plan_model(registry, selected, context)
    if requantize is None or requantize.name is None:
        return PlannedMerge(plan=plan, settings=settings)
    options: Mapping[str, Any] = requantize.options
    requantizer = choose_requantizer(
        registry, requantize.name, options, context.device, has_rows=run is not None, ship=plan.ship
    )
    if run is None or loaded is None:
        return PlannedMerge(plan=plan, settings=settings, requantizer=requantizer)
    for line in compare_versions(run, registry, (FORMATTER, OBJECTIVE)):  # they read the rows again
        progress.say(line)
    return PlannedMerge(
        plan=plan,
        settings=settings,
        requantizer=requantizer,
        calibration=_needed_calibration(registry, loaded, plan, requantizer, settings),
        held_out=held_out_rows(registry, loaded, plan, run),
    )


def _needed_calibration(
    registry: Registry, loaded: LoadedConfig, plan: ModelPlan, requantizer: Requantizer, settings: MergeSettings
) -> Calibration | None:
    """The calibration rows, if they may be needed: on another base, the grids of the run cannot be used."""
    if requantizer.needs_calibration:
        return _calibration(registry, loaded, plan)
    if requantizer.ship is None or settings.check_base or not replace(requantizer, ship=None).needs_calibration:
        return None
    try:
        return _calibration(registry, loaded, plan)
    except SmolLM3Error as e:  # on its own base, the grids of the run are enough
        plan.context.progress.say(f"the rows of the run are not available for calibration ({e.message})")
        return None


def _calibration(registry: Registry, loaded: LoadedConfig, plan: ModelPlan) -> Calibration:
    """The calibration rows: those with which the run's base was quantized, else rows selected as in a run."""
    assert plan.saved is not None
    if (kept := plan.saved.calibration) is not None:
        return Calibration(lambda: read_calibration(kept))
    return plan_calibration(registry, select_rows(registry, loaded), loaded, plan.context.progress).ids(plan)
