"""The rows on which a quantizer calibrates: token ids of the run's own training rows, or of a file of their own.

They are chosen by the seed, made when the quantizer first asks for them, and kept with the run, because a base that
was quantized on them can be made again only from them (`saved.SavedAdapter.calibration`).
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
from smollm3_finetune.data.tokenization import tokenize
from smollm3_finetune.model.plan import ModelPlan

Ids = list[list[int]]


@dataclass
class Calibration:
    """What `BuildContext.calibration` is in a run: makes the ids when first called, and remembers them."""

    make: Callable[[], Ids]
    used: Ids | None = None
    """None as long as nobody asked."""

    def __call__(self) -> Ids:
        if self.used is None:
            self.used = self.make()
        return self.used


def from_examples(examples: Examples, config: CalibrationConfig, seed: int) -> Ids:
    """Token ids of `config.rows` of the examples (all where there are fewer), each cut to `config.length` tokens."""
    import torch

    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[: config.rows].tolist())
    return [examples[i]["input_ids"][: config.length] for i in chosen]


def from_rows(rows: Rows, renderer: Renderer, config: CalibrationConfig) -> Ids:
    """The same of rows that are not tokenized: those whose content and the seed put them first."""
    first = heapq.nsmallest(config.rows, enumerate(rows.positioned()), key=lambda r: (r[1].position, r[0]))
    in_order = sorted(first, key=lambda r: r[0])
    return [renderer.encode(row.conversation, config.length).input_ids for _, row in in_order]


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """Where the calibration rows come from: the rows that a run with the same configuration would train on."""

    rows: Rows
    survey: Survey
    own: Rows | None
    """Rows of their own instead."""
    objective: SelectedComponent
    render: RenderOptions
    loaded: LoadedConfig

    def ids(self, model: ModelPlan) -> Calibration:
        """The token ids, made when they are asked for."""
        context = model.context

        def make() -> list[list[int]]:
            chosen = [s.formatter for s in self.rows.sources] + [model.loader, model.quantizer, self.objective]
            config = with_suggestions(self.loaded, chosen).config
            renderer = Renderer(model.tokenizer(), self.render)

            def examples() -> Examples:
                length, cache, progress = config.data.max_length, context.cache, context.progress
                return tokenize(self.rows, self.survey, self.objective, renderer, length, cache, progress).train

            return calibration_ids(config, self.own, renderer, examples)

        return Calibration(make)


def plan_calibration(
    registry: Registry, selected: SelectedRows, loaded: LoadedConfig, progress: Progress
) -> CalibrationPlan:
    """Read the rows that a configuration selects. Raises DataError for what is wrong with them."""
    rows = selected.rows(registry)
    return CalibrationPlan(
        rows=rows,
        survey=rows.survey(progress),
        own=selected.calibration_rows(registry),
        objective=selected.objective,
        render=selected.render,
        loaded=loaded,
    )


def calibration_ids(config: RunConfig, own: Rows | None, renderer: Renderer, examples: Callable[[], Examples]) -> Ids:
    """Token ids of `own` rows if the configuration names some, else of the training `examples`."""
    if own is not None:
        return from_rows(own, renderer, config.calibration)
    return from_examples(examples(), config.calibration, config.seed)
