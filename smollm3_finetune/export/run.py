"""The procedure of an export: full precision first, then write, verify, read back, and only then keep."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, Check, Exported, Purpose
from smollm3_finetune.components.contract import described
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.errors import ConfigError, ModelError, PluginError
from smollm3_finetune.evaluation.retained import Retained, unknown
from smollm3_finetune.export.dense import REFUSED, exact_dtype, full_precision, is_dense
from smollm3_finetune.export.names import check_is_directory
from smollm3_finetune.export.plan import PlannedExport
from smollm3_finetune.export.report import export_report, publish_export
from smollm3_finetune.export.shipped import check_exported, export_context, not_compared, trained_for
from smollm3_finetune.export.subject import exported
from smollm3_finetune.files.room import check_room
from smollm3_finetune.merge.report import Merged
from smollm3_finetune.merge.run import retained_by
from smollm3_finetune.model.device import free_memory
from smollm3_finetune.model.trained_context import check_trained_context
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.model_files.output import SIZES, SPARE, check_vacant, claimed, partial
from smollm3_finetune.model_files.skeleton import count_parameters
from smollm3_finetune.model_files.writing import published_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export(planned: PlannedExport) -> dict[str, Any]:
    """Write and verify the model or the adapter, and keep it if every check passes; returns the report.

    Its content is also in `export.json` of the output, which appears whole or not at all. Raises ConfigError if the
    output is not empty, ModelError if the merge or the result is refused, and the errors of the components.
    """
    began = time.monotonic()
    plan, settings = planned.plan, planned.settings
    bound = settings.max_drift
    if bound is not None and not (math.isfinite(bound) and bound > 0):
        raise ConfigError(f"--max-drift must be a positive number, not {bound}", hint="--max-drift 0.01")
    quiet_transformers()
    if settings.check_base:
        check_trained_context(plan)
    check_is_directory(settings.output, planned.choice)
    check_vacant("--output", settings.output)
    dtype = exact_dtype(plan)
    if planned.spec.takes == "model":
        _check_disk(planned)
    with contextlib.ExitStack() as held:
        held.enter_context(claimed(settings.output))
        source, merged, about_merge = full_precision(planned, held)
        adapter = plan.saved.path if planned.spec.takes == "adapter" and plan.saved is not None else None
        subject = exported(source, adapter, plan, planned.rows)
        out = held.enter_context(partial(settings.output))
        ship = trained_for(planned.choice, plan.ship, merged)
        context = export_context(ship, replace(plan.context, purpose=Purpose.EXPORT, dtype=dtype))
        checks = _written(planned, subject, out, context)
        if ship is not None:
            checks = [*checks, check_exported(ship, reloaded(planned, subject, out, context))]
            free_memory()
        skipped = not_compared(planned.choice, plan.ship, merged)
        checks = checks if skipped is None else [*checks, skipped[0]]
        kept = _retained(planned, subject, out, context, merged)
        about, remedy = export_report(planned, subject, out, checks, about_merge, kept, skipped[1] if skipped else None)
        publish_export(about, out, planned)
    return {
        "output": str(settings.output),
        "device": context.device,
        "remedy": remedy,
        **about,
        "seconds": round(time.monotonic() - began, 1),
    }


def _check_disk(planned: PlannedExport) -> None:
    """Raises WriteError if the full-precision copy, if one is made, and what the exporter writes do not fit."""
    plan = planned.plan
    known = count_parameters({k: v for k, v in plan.source.config.items() if k != "quantization_config"})
    if known is None:
        return
    copied = planned.merges or not is_dense(plan)
    passed = SIZES[exact_dtype(plan)] if copied else SIZES[published_dtype(plan.source.config)]
    size = (passed if copied else 0) + (passed if planned.spec.disk is None else planned.spec.disk)
    what = f"the export, {'with a temporary full-precision copy of the model' if copied else 'without a copy'},"
    check_room(planned.settings.output, SPARE * known * size, what, hint="choose an --output on another disk")


def _written(planned: PlannedExport, subject: Exported, out: Path, context: BuildContext) -> Sequence[Check]:
    """Write into `out` and verify it. Raises ModelError if a check fails, PluginError if there is none."""
    component, task = planned.choice.component, context.progress.task
    with task(f"writing {component.spec.name}"), attributed_to(component, "write()"):
        planned.exporter.write(subject, out, context)
    _check_files(planned, out)
    with task("verifying"), attributed_to(component, "verify()"):
        checks = list(planned.exporter.verify(subject, out, context))
        if wrong := [c for c in checks if not isinstance(c, Check)]:
            raise TypeError(f"it returned {described(wrong[0])} among its checks, not a Check")
    free_memory()
    if all(check.passed is None for check in checks):
        raise PluginError(
            f"{component.who}: verify() returned no check with a verdict, so nothing is known about what it wrote",
            hint="return at least one Check with passed=True or passed=False",
        )
    if failed := [check for check in checks if check.passed is False]:
        raise ModelError(f"{REFUSED}: " + "; ".join(f"{check.name}: {check.says}" for check in failed))
    return checks


def _check_files(planned: PlannedExport, out: Path) -> None:
    """Raises PluginError if the exporter has written no file, or a link, which would not be kept."""
    component = planned.choice.component
    files = list(out.rglob("*"))
    if link := next((f for f in files if f.is_symlink()), None):
        raise PluginError(f"{component.who}: write() made the link {link.name!r}", hint="copy the file")
    if not any(f.is_file() for f in files):
        raise PluginError(f"{component.who}: write() has written no file", hint="write into the directory `out`")


def _retained(
    planned: PlannedExport, subject: Exported, out: Path, context: BuildContext, merged: Merged | None
) -> Retained | None:
    """The share of the gain of training that the written model keeps; None if no adapter was merged."""
    if merged is None:
        return None
    if merged.base_losses is None or planned.rows.held_out is None:
        reason = merged.predicted.not_learned if planned.rows.held_out is not None else planned.rows.why_none
        return unknown(reason or "the losses were not measured")
    if (model := reloaded(planned, subject, out, context)) is None:
        return unknown(f"{planned.choice.component.title} does not read back what it writes")
    with context.progress.task("measuring the exported model"):
        losses = planned.rows.held_out.losses(model)
    del model
    free_memory()
    return retained_by(merged, losses)


def reloaded(planned: PlannedExport, subject: Exported, out: Path, context: BuildContext) -> PreTrainedModel | None:
    """The written model with the weights that it computes with; None if its exporter cannot read it back."""
    component = planned.choice.component
    with context.progress.task("reading it back"), attributed_to(component, "reload()"):
        model = planned.exporter.reload(subject, out, context)
        if model is not None and not hasattr(model, "get_input_embeddings"):
            raise TypeError(f"it returned {described(model)}, not a model")
    return model
