"""The work of a merge stage: a dense model, or with `quantize` a quantized checkpoint of it, whole or not at all."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import Purpose
from smollm3_finetune.files.json import json_object
from smollm3_finetune.merge.report import MergeSettings
from smollm3_finetune.merge.start import PlannedMerge, plan_merge
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.model_files.output import check_vacant
from smollm3_finetune.model_files.writing import FIGURES, saveable_dtype
from smollm3_finetune.pipeline.work import Work, subject_of
from smollm3_finetune.quantize.requantize import choose_requantizer


def merge_stage(work: Work) -> None:
    """Merge, and report the warnings."""
    check_vacant("output", work.directory)
    report = planned_merge(work).merge()
    for warning in report["warnings"]:
        work.warn(warning)
    if report["forced"]:
        work.warn(f"kept because of merge.force: {report['fault']}")


def planned_merge(work: Work, *, only_check: bool = False) -> PlannedMerge:
    """The checked merge. With `only_check`, rows are not read."""
    stage, options = work.stage, work.stage.merge
    assert options is not None and stage.start is not None
    check_options(work)
    quiet_transformers()
    subject = subject_of(work, stage.start, "merge", Purpose.MERGE)
    registry, device = work.registry(), work.loaded().config.device
    own = "auto" if subject.loaded is None else subject.loaded.config.dtype
    if only_check and stage.quantize is not None and stage.quantize.name is not None:
        has_rows = subject.run is not None
        choose_requantizer(registry, stage.quantize.name, stage.quantize.options, "cpu", has_rows=has_rows)
    return plan_merge(
        registry,
        subject.request,
        MergeSettings(
            output=work.directory,
            dtype=options.dtype,
            max_drift=options.max_drift,
            force=options.force,
            untie=options.untie,
            check_base=not options.any_base,
            pipeline=work.about,
        ),
        run=subject.run,
        loaded=subject.loaded,
        requantize=None if only_check else stage.quantize,
        device=device,
        compute_dtype=options.compute_dtype or own,
        progress=work.progress,
    )


def check_options(work: Work) -> None:
    """Raises ConfigError for a dtype that does not exist."""
    options = work.stage.merge
    assert options is not None
    saveable_dtype("merge.dtype", options.dtype)
    saveable_dtype("merge.compute_dtype", options.compute_dtype)


def merging_figures(work: Work) -> dict[str, Any]:
    """The error that the merge added to the logits; with `quantize`, the losses before and after it."""
    about = json_object(work.directory / FIGURES)
    found = {"excess": (about.get("figures") or {}).get("excess")}
    if (predicted := (about.get("requantized") or {}).get("predictions")) is not None:
        found |= {"before": predicted.get("loss_before"), "after": predicted.get("loss_after")}
    return found
