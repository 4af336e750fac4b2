"""The work of an export stage: a run or a model, written for other software and verified, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smollm3_finetune.api import ExporterSpec, Purpose
from smollm3_finetune.components.negotiation import environment, refined
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.export.names import choose_exporter
from smollm3_finetune.export.plan import ExportSettings, PlannedExport, plan_export
from smollm3_finetune.export.run import export
from smollm3_finetune.files.json import json_object
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.model_files.output import check_vacant
from smollm3_finetune.model_files.writing import EXPORT_FIGURES
from smollm3_finetune.pipeline.work import Work, subject_of


def export_stage(work: Work) -> None:
    """Export, and report the warnings."""
    check_vacant("output", work.directory)
    for warning in export(planned_export(work))["warnings"]:
        work.warn(warning)


def chosen_exporter(work: Work) -> SelectedComponent:
    """The exporter of the stage. Raises ConfigError if it takes an adapter and the stage begins with a model."""
    stage = work.stage
    assert stage.export is not None and stage.start is not None
    choice = choose_exporter(work.registry(), stage.export, stage.origins)
    earlier = next((s for s in work.pipeline.stages if s.name == stage.start.stage), None)
    if choice.spec.takes == "adapter" and earlier is not None and earlier.kind != "train":
        raise ConfigError(
            f"{choice.component.title} writes an adapter alone, but the stage {earlier.name!r} writes a model",
            hint="from: the train stage",
        )
    return choice


def check_loads(work: Work) -> None:
    """Raises ConfigError if the stage takes the result of an export that no loader opens."""
    for ref in work.stage.refs():
        earlier = next((s for s in work.pipeline.stages if s.name == ref.stage), None)
        if earlier is None or earlier.export is None:
            continue
        assert earlier.start is not None
        its = replace(work, stage=earlier)  # the plugins and the device may be keys of that stage
        choice = choose_exporter(its.registry(), earlier.export, earlier.origins)
        spec: ExporterSpec = refined(choice, environment(its.context(Purpose.EXPORT)().device, Purpose.EXPORT))
        if not spec.loads:
            raise ConfigError(
                f"{ref.origin}: the stage {earlier.name!r} exports for other software: smollm3 does not load what "
                f"{choice.component.title} writes with these options",
                hint=f"begin with {earlier.start.title}, which it exports",
            )


def planned_export(work: Work) -> PlannedExport:
    """The checked export; rows are read when they are needed."""
    stage = work.stage
    assert stage.start is not None
    choice = chosen_exporter(work)
    quiet_transformers()
    subject = subject_of(work, stage.start, "export", Purpose.MERGE)
    own = "auto" if subject.loaded is None else subject.loaded.config.dtype
    return plan_export(
        *(work.registry(), subject.request, ExportSettings(output=work.directory, pipeline=work.about), choice),
        run=subject.run,
        loaded=subject.loaded,
        device=work.loaded().config.device,
        compute_dtype=own,
        progress=work.progress,
    )


def exporting_figures(work: Work) -> dict[str, Any]:
    """The bytes of the written files, and the losses before and after, if the retained share is known."""
    about = json_object(work.directory / EXPORT_FIGURES)
    kept = about.get("retained") or {}
    return {
        "bytes": sum((about.get("files") or {}).values()),
        "before": kept.get("adapter"),
        "after": kept.get("shipped"),
    }
