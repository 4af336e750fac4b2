"""What an exporter receives: the model on disk, and the rows that its result is verified on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

from smollm3_finetune.api import Exported, ModelSource, branch_rows
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.data.calibration import PlannedRows
from smollm3_finetune.data.vocabulary import embeddings_of
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.merge.gate import fixed_rows
from smollm3_finetune.merge.prediction import PredictedRows, fixed_texts, predicted_rows, rows_of_run
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.model_files.model_card import shown_ref
from smollm3_finetune.runs.rundir import RunDir

T = TypeVar("T")
NAME = re.compile(r"[^A-Za-z0-9._-]+")
"""What a name for files does not have."""


class RowsOfRun:
    """The rows of the run whose adapter is exported, read when they are first asked for; none without a run."""

    def __init__(
        self, registry: Registry, plan: ModelPlan, run: RunDir | None = None, loaded: LoadedConfig | None = None
    ) -> None:
        self.registry = registry
        self.plan = plan
        self.run = run
        self.loaded = loaded
        self.why_none = "there is no run, so there are no held-out rows"
        """Why `held_out` is None, where it is."""

    @cached_property
    def _planned(self) -> PlannedRows | None:
        loaded = self.loaded
        if loaded is None:
            return None
        return self._available(lambda: rows_of_run(self.registry, loaded, self.plan.context.progress))

    @cached_property
    def held_out(self) -> PredictedRows | None:
        """The held-out rows, as a merge measures them; None if there are none."""
        if (planned := self._planned) is None:
            return None
        return self._available(lambda: predicted_rows(planned, self.plan, self.run))

    def texts(self) -> Iterator[str]:
        """The training rows as rendered texts."""
        if (planned := self._planned) is None:
            return
        renderer = planned.renderer(self.plan)
        for row in planned.rows.positioned():
            if not row.left_out and not planned.survey.holds_out(row):
                yield renderer.rendered(row.conversation).text

    def _available(self, read: Callable[[], T]) -> T | None:
        """What `read` returns; None, with a line that says why, if the rows of the run cannot be used."""
        try:
            return read()
        except SmolLM3Error as e:
            self.why_none = e.message
            self.plan.context.progress.say(
                f"the held-out rows of the run are not available ({e.message}): fixed texts are used instead"
            )
            return None


def exported(source: ModelSource, adapter: Path | None, plan: ModelPlan, rows: RowsOfRun) -> Exported:
    """The subject of an export; rows and prompts are computed at the first call, and kept."""

    @cache
    def to_measure() -> Sequence[Mapping[str, Sequence[int]]]:
        found = rows.held_out or fixed_texts(source.tokenizer(), _vocabulary(source))
        return [one for row in found.rows for one in _single(row)]

    @cache
    def prompts() -> Sequence[Sequence[int]]:
        return fixed_rows(source.tokenizer(), _vocabulary(source))

    return Exported(
        model=source, adapter=adapter, name=name_for(plan), texts=rows.texts, rows=to_measure, prompts=prompts
    )


def name_for(plan: ModelPlan) -> str:
    """A name for files: the model's, and the adapter's if there is one."""
    parts = [shown_ref(plan.ref).rpartition("/")[2]]
    if plan.adapter is not None:
        parts.append(plan.adapter.component.spec.name)
    return NAME.sub("-", "-".join(parts)).strip("-.") or "model"


def _single(row: Mapping[str, Sequence[int]]) -> Sequence[Mapping[str, Sequence[int]]]:
    """A row as rows with nothing but `input_ids` and `labels`: several answers to one prompt are separate rows."""
    made = branch_rows([row]) if "branches" in row else [row]
    return [{name: one[name] for name in ("input_ids", "labels")} for one in made]


def _vocabulary(source: ModelSource) -> int:
    return embeddings_of(source.config) or len(source.tokenizer())
