"""The calibration data of a quantizer: token ids of the run's training rows, or of separate calibration rows.

They are chosen by `data.seed`, built when the quantizer first asks for them, and saved with the run, because a base
that was quantized with them can be rebuilt only from them (`SavedAdapter.calibration`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from smollm3_finetune.api import Progress
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.components.suggestions import with_suggestions
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.config.schema import CalibrationConfig, RunConfig
from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.data.examples import Examples
from smollm3_finetune.data.plan import SelectedRows
from smollm3_finetune.data.rows import Rows, Survey
from smollm3_finetune.data.tokenization import Tokens, tokenize
from smollm3_finetune.model.plan import ModelPlan

Ids = list[list[int]]


@dataclass
class Calibration:
    """The `BuildContext.calibration` of a run: builds the ids on the first call and keeps them."""

    make: Callable[[], Ids]
    used: Ids | None = None
    """None before the first call."""

    def __call__(self) -> Ids:
        if self.used is None:
            self.used = self.make()
        return self.used


def from_examples(examples: Examples, config: CalibrationConfig, seed: int) -> Ids:
    """Token ids of `config.rows` of the examples (all if there are fewer), each cut to `config.length` tokens."""
    import torch

    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[: config.rows].tolist())
    return [examples[i]["input_ids"][: config.length] for i in chosen]


def from_rows(rows: Rows, renderer: Renderer, config: CalibrationConfig) -> Ids:
    """The same for rows that are not tokenized yet: the `config.rows` rows with the lowest split positions."""
    usable = (row for row in rows.positioned() if not row.left_out)
    first = heapq.nsmallest(config.rows, enumerate(usable), key=lambda r: (r[1].position, r[0]))
    in_order = sorted(first, key=lambda r: r[0])
    made = []
    for _, row in in_order:
        made.append(renderer.encode(row.conversation, config.length).input_ids)
        renderer.check_ids(made[-1], row.where)
    return made


@dataclass(frozen=True, kw_only=True)
class PlannedRows:
    """The rows that a run with a configuration trains on and holds out."""

    rows: Rows
    survey: Survey
    objective: SelectedComponent
    render: RenderOptions
    loaded: LoadedConfig

    def config(self, model: ModelPlan) -> RunConfig:
        """The configuration, with the suggestions of the components."""
        chosen = [s.formatter for s in self.rows.sources] + [model.loader, model.quantizer, self.objective]
        return with_suggestions(self.loaded, chosen).config

    def renderer(self, model: ModelPlan) -> Renderer:
        return Renderer(model.tokenizer(), self.render, embeddings=model.embeddings)

    def tokens(self, model: ModelPlan) -> Tokens:
        """The rows as tokens, from the cache if it has them. Raises DataError if a row is invalid."""
        config, context = self.config(model), model.context
        return tokenize(
            *(self.rows, self.survey, self.objective, self.renderer(model), config.data.max_length),
            *(context.cache, context.progress),
            chunk=config.data.long_text == "chunk",
            new_tokens=model.new_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """The source of the calibration rows: the rows that a run with the same configuration would train on, or `own`."""

    planned: PlannedRows
    own: Rows | None
    """Separate calibration rows; None: the training rows are used."""

    def ids(self, model: ModelPlan) -> Calibration:
        """The token ids, built on the first call."""
        planned = self.planned

        def make() -> list[list[int]]:
            config, renderer = planned.config(model), planned.renderer(model)
            return calibration_ids(config, self.own, renderer, lambda: planned.tokens(model).train)

        return Calibration(make)


def plan_rows(registry: Registry, selected: SelectedRows, loaded: LoadedConfig, progress: Progress) -> PlannedRows:
    """Read the rows that a configuration selects. Raises DataError if rows are invalid."""
    rows = selected.rows(registry)
    return PlannedRows(
        rows=rows,
        survey=rows.survey(progress),
        objective=selected.objective,
        render=selected.render,
        loaded=loaded,
    )


def plan_calibration(
    registry: Registry, selected: SelectedRows, loaded: LoadedConfig, progress: Progress
) -> CalibrationPlan:
    """Read the rows that a configuration selects. Raises DataError if rows are invalid."""
    planned = plan_rows(registry, selected, loaded, progress)
    return CalibrationPlan(planned=planned, own=selected.calibration_rows(registry))


def calibration_ids(config: RunConfig, own: Rows | None, renderer: Renderer, examples: Callable[[], Examples]) -> Ids:
    """Token ids of the `own` rows if the configuration names any, else of the training `examples`."""
    if own is not None:
        return from_rows(own, renderer, config.calibration)
    return from_examples(examples(), config.calibration, config.data.seed)
