"""The report of an export, and the files that contain it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smollm3_finetune.api import Check, Exported
from smollm3_finetune.components.requirements import installed_version
from smollm3_finetune.evaluation.retained import Retained, retained_warning
from smollm3_finetune.export.card import card
from smollm3_finetune.export.plan import PlannedExport
from smollm3_finetune.files.json import write_json
from smollm3_finetune.merge.remedy import ship_as_command
from smollm3_finetune.merge.report import LIBRARIES
from smollm3_finetune.model.adapter_card import StatedTraining, stated_training
from smollm3_finetune.model_files.model_card import FILE as CARD
from smollm3_finetune.model_files.model_card import license_of, shown_ref
from smollm3_finetune.model_files.output import publish
from smollm3_finetune.model_files.writing import EXPORT_FIGURES


def export_report(
    planned: PlannedExport,
    subject: Exported,
    out: Path,
    checks: Sequence[Check],
    merge: Mapping[str, Any] | None,
    kept: Retained | None,
    warning: str | None = None,
) -> tuple[dict[str, Any], str | None]:
    """The content of `export.json`, and the command that retains more, if there is one.

    The content has no local path, because it is distributed with the model.
    """
    plan, choice = planned.plan, planned.choice
    chosen = [plan.loader, plan.quantizer, choice, *([plan.adapter] if plan.adapter is not None else [])]
    versions = {c.component.distribution: c.component.version for c in chosen}
    versions |= {name: installed_version(name) or "" for name in LIBRARIES}
    ref, name = shown_ref(plan.ref), choice.component.spec.name
    what = [ref.rpartition("/")[2], *([plan.adapter.component.spec.name] if plan.adapter is not None else [])]
    warnings = list(merge["warnings"]) if merge is not None else []
    warnings += [warning] if warning is not None else []
    remedy = None
    if kept is not None and (text := retained_warning(kept)) is not None:
        warnings.append(text)
        remedy = ship_as_command(plan, choice)
    about = {
        "title": f"{', '.join(what)}, exported as {name}",
        "name": subject.name,
        "exporter": name,
        "options": choice.changed_options(),
        "model": ref,
        "license": license_of(plan.source.path),
        "quantizer": plan.quantizer.component.spec.name,
        "quantizer_options": plan.quantizer.changed_options(),
        "adapter": plan.adapter.component.spec.name if plan.adapter is not None else None,
        "adapter_options": plan.adapter.changed_options() if plan.adapter is not None else {},
        "merge": None if merge is None else {name: merge[name] for name in ("dtype", "figures", "limits", "own_base")},
        "checks": [{"name": c.name, "passed": c.passed, "says": c.says, "figures": _plain(c.figures)} for c in checks],
        "retained": None if kept is None else kept.as_json(),
        "loads": planned.spec.loads,
        "files": {str(f.relative_to(out)): f.stat().st_size for f in sorted(out.rglob("*")) if f.is_file()},
        "warnings": warnings,
        "versions": versions,
        **({} if planned.settings.pipeline is None else {"pipeline": dict(planned.settings.pipeline)}),
    }
    return about, remedy


def publish_export(about: Mapping[str, Any], out: Path, planned: PlannedExport) -> None:
    """Write the card and the figures into an otherwise complete directory, and rename it to the output."""
    (out / CARD).write_text(card(about, _training(planned)), encoding="utf-8")
    write_json(out / EXPORT_FIGURES, about)
    publish(out, planned.settings.output)


def _training(planned: PlannedExport) -> StatedTraining:
    """The training that the card of the adapter, or of the model, states."""
    saved = planned.plan.saved
    return stated_training(saved.path if saved is not None else planned.plan.source.path)


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON represents them: a number that is not finite is None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
