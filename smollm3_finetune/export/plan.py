"""From a run, a model or a saved adapter to a planned export. `smollm3 export` and pipelines start here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.api import Exporter, ExporterSpec, ModelSource, Progress, Purpose
from smollm3_finetune.components.kinds import FORMATTER, OBJECTIVE
from smollm3_finetune.components.negotiation import environment, refined
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.errors import ConfigError, raise_all
from smollm3_finetune.export.shipped import with_trained_options
from smollm3_finetune.export.subject import RowsOfRun
from smollm3_finetune.model.load import build_context
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, SelectedModel, plan_model, select_model
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.versions import compare_versions


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The settings of an export, except the model and the exporter."""

    output: Path
    """The output directory; must be empty or new."""
    max_drift: float | None = None
    """The limit of the relative error that the merge adds to the logits; None: depends on the dtype."""
    untie: bool = False
    """Merge embeddings and head as two matrices if the base ties them."""
    check_base: bool = True
    """Refuse an adapter that was trained on other weights."""
    pipeline: Mapping[str, str] | None = None
    """The `pipeline` and the `stage` that this export is, if it is one."""


@dataclass(frozen=True, kw_only=True)
class PlannedExport:
    """An export whose names, options and rows were checked; no weights were read."""

    plan: ModelPlan
    settings: ExportSettings
    choice: SelectedComponent
    spec: ExporterSpec
    """The refined descriptor of the exporter."""
    exporter: Exporter
    rows: RowsOfRun

    @property
    def merges(self) -> bool:
        """Whether an adapter is merged first."""
        return self.plan.adapter is not None and self.spec.takes == "model"


def plan_export(
    registry: Registry,
    request: ModelRequest,
    settings: ExportSettings,
    choice: SelectedComponent,
    *,
    run: RunDir | None,
    loaded: LoadedConfig | None,
    device: str,
    compute_dtype: str,
    progress: Progress,
) -> PlannedExport:
    """Check an export. `run` is the run of the adapter and `loaded` its configuration, if the adapter is of a run."""
    selected = select_model(registry, request)
    choice = with_trained_options(choice, selected.ship)
    merges = selected.adapter is not None and choice.spec.takes == "model"
    context = build_context(Purpose.MERGE if merges else Purpose.EXPORT, device, compute_dtype, 0, progress=progress)
    spec: ExporterSpec = refined(choice, environment(context.device, Purpose.EXPORT))
    _check_adapter(choice, spec, selected)
    raise_all(requirement_problems(choice.component.title, spec.requires, context.device))
    plan = plan_model(registry, selected, context)
    check_source(choice, spec, plan.source)
    exporter = choice.create()
    if run is not None and spec.takes == "model":
        for line in compare_versions(run, registry, (FORMATTER, OBJECTIVE)):  # they read the rows again
            progress.say(line)
    return PlannedExport(
        plan=plan,
        settings=settings,
        choice=choice,
        spec=spec,
        exporter=exporter,
        rows=RowsOfRun(registry, plan, run, loaded),
    )


def check_source(choice: SelectedComponent, spec: ExporterSpec, source: ModelSource) -> None:
    """Raises what `check` of the descriptor raises for a model that cannot be exported."""
    if (check := spec.check) is not None:
        with attributed_to(choice.component, "check()"):
            choice.component.waited(lambda: check(choice.options, source), "check")


def _check_adapter(choice: SelectedComponent, spec: ExporterSpec, selected: SelectedModel) -> None:
    """Raises ConfigError if the exporter takes an adapter and there is none."""
    if spec.takes == "adapter" and selected.adapter is None:
        raise ConfigError(
            f"{choice.component.title} writes an adapter alone, but {selected.request.ref!r} has none",
            hint="name a run, or: --adapter-path RUN/adapter",
        )
