"""The report of a merge, and the files that contain it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.components.requirements import installed_version
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.files.json import write_json
from smollm3_finetune.merge.card import card
from smollm3_finetune.merge.gate import Figures, Limits, fault
from smollm3_finetune.merge.prediction import PredictedRows
from smollm3_finetune.model.adapter_card import stated_training
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.model_files.model_card import FILE as CARD
from smollm3_finetune.model_files.model_card import license_of, shown_ref
from smollm3_finetune.model_files.output import publish
from smollm3_finetune.model_files.writing import FIGURES

if TYPE_CHECKING:
    from torch import Tensor


LIBRARIES = ("torch", "transformers", "safetensors")
"""Packages whose versions the report contains."""


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """The settings of a merge, except its adapter and its base."""

    output: Path
    """The output directory; must be empty or new."""
    dtype: str | None = None
    """The dtype of the saved weights; None: the dtype in which the base was published."""
    max_drift: float | None = None
    """The limit of the relative error that the merge adds to the logits; None: depends on the dtype."""
    force: bool = False
    """Keep a merge that exceeds a limit."""
    untie: bool = False
    """Write embeddings and head as two matrices if the base ties them, for adapters that change only one of them."""
    check_base: bool = True
    """Refuse an adapter that was trained on other weights."""
    keep_dense: Path | None = None
    """With a requantizer: the directory of the merged model itself; None: it is not kept."""
    pipeline: Mapping[str, str] | None = None
    """The `pipeline` and the `stage` that this merge is, if it is one."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged model that was saved to `path` and reloaded from there."""

    path: Path
    own_base: bool | None
    """Whether the adapter was trained on these weights; None if its directory does not state it."""
    tie_changed: bool
    """Whether the merge changed the embeddings of a base that ties them to its head, and kept the tie."""
    untied: bool | None
    """Whether embeddings and head differ after they were untied; None: they were not untied."""
    figures: Figures
    limits: Limits
    computed: str
    """The dtype in which the reloaded model was evaluated."""
    parameters: int
    rows: Sequence[Sequence[int]]
    logits: Sequence[Tensor]
    """The logits of the reloaded model, (T, V) for each row of T ids."""
    predicted: PredictedRows
    losses: RowLosses | None = None
    """Of the reloaded model on `predicted`; None if nothing is compared with it."""
    base_losses: RowLosses | None = None
    """Of the base, if the rows show what training gained; None if nothing is compared."""
    adapter_losses: RowLosses | None = None
    """Of the restored adapter computing with the weights of the format that it was trained for; None without one."""
    shipped: Mapping[str, Any] | None = None
    """What was compared with the weights of training, if the run was trained with `train.ship_as`."""
    shipped_warnings: Sequence[str] = ()
    """Why they were not compared, if this machine computes others."""


def publish_merge(about: Mapping[str, Any], path: Path, directory: Path, adapter: Path) -> None:
    """Write the card and the figures into an otherwise complete directory, and rename it to `directory`.

    The card repeats the training that the card of the `adapter` states.
    """
    (path / CARD).write_text(card(about, stated_training(adapter)), encoding="utf-8")
    write_json(path / FIGURES, about)
    publish(path, directory)


def merge_report(plan: ModelPlan, dtype: str, merged: Merged, settings: MergeSettings) -> dict[str, Any]:
    """The content of `merge.json`. It contains no local path, because it is distributed with the model."""
    assert plan.adapter is not None
    figures, limits = merged.figures, merged.limits
    wrong = fault(figures, limits, plan.quantizer.component.title)
    warnings: list[str] = []
    if figures.moved == 0.0:
        warnings.append("the adapter changes nothing: the logits with it equal those of the base alone")
    if merged.own_base is False:
        warnings.append("the adapter was trained on other weights than those of this base")
    if settings.untie and merged.untied is None:
        warnings.append("the base does not tie its head to its embeddings: --untie changes nothing")
    if merged.untied is False:
        warnings.append("the adapter keeps embeddings and head equal: the same model is smaller without --untie")
    warnings += merged.shipped_warnings
    chosen = [plan.loader, plan.quantizer, plan.adapter]
    versions = {c.component.distribution: c.component.version for c in chosen}
    versions |= {name: installed_version(name) or "" for name in LIBRARIES}
    numbers = {**dataclasses.asdict(figures), "merged_excess": figures.merged_excess, "excess": figures.excess}
    ref = shown_ref(plan.ref)
    return {
        "title": f"{ref.rpartition('/')[2]}, {plan.adapter.component.spec.name}, merged",
        "model": ref,
        "license": license_of(plan.source.path),
        "own_base": merged.own_base,
        "quantizer": plan.quantizer.component.spec.name,
        "quantizer_options": plan.quantizer.changed_options(),
        "adapter": plan.adapter.component.spec.name,
        "adapter_options": plan.adapter.changed_options(),
        "dtype": dtype,
        "computed_in": merged.computed,
        "parameters": merged.parameters,
        **({"new_tokens": [token.as_json() for token in plan.new_tokens]} if plan.new_tokens else {}),
        "figures": {name: finite_or_none(value) for name, value in numbers.items()},
        "limits": dataclasses.asdict(limits),
        "fault": wrong,
        "untied": merged.untied is not None,
        "forced": wrong is not None and settings.force,
        "warnings": warnings,
        "requantized": None,
        "shipped": merged.shipped,
        "versions": versions,
        **({} if settings.pipeline is None else {"pipeline": dict(settings.pipeline)}),
    }


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
