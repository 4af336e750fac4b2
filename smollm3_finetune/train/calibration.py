"""The calibration rows of a configuration, for verbs that quantize without training."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import BuildContext
from smollm3_finetune.components.kinds import OBJECTIVE
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import Choice, choose
from smollm3_finetune.components.suggestions import with_suggestions
from smollm3_finetune.config.load import Loaded
from smollm3_finetune.config.schema import DEFAULT_OBJECTIVE
from smollm3_finetune.data.calibration import Calibration, from_examples, from_rows
from smollm3_finetune.data.render import Renderer, RenderOptions
from smollm3_finetune.data.rows import Rows, Survey
from smollm3_finetune.data.tokens import tokenize
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.train.plan import calibration_rows, find_rows, render_options


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """Where the calibration rows come from: the rows that a run with the same configuration would train on."""

    rows: Rows
    survey: Survey
    own: Rows | None
    """Rows of their own instead."""
    objective: Choice
    render: RenderOptions
    loaded: Loaded

    def ids(self, model: ModelPlan) -> Calibration:
        """The token ids, made when they are asked for."""
        context = model.context

        def make() -> list[list[int]]:
            chosen = [s.formatter for s in self.rows.sources] + [model.loader, model.quantizer, self.objective]
            config = with_suggestions(self.loaded, chosen).config
            renderer = Renderer(model.tokenizer(), self.render)
            if self.own is not None:
                return from_rows(self.own, renderer, config.calibration)
            length = config.data.max_length
            tokens = tokenize(self.rows, self.survey, self.objective, renderer, length, context.cache, context.progress)
            return from_examples(tokens.train, config.calibration, config.seed)

        return Calibration(make)


def plan_calibration(registry: Registry, loaded: Loaded, context: BuildContext) -> CalibrationPlan:
    """Check a configuration's rows. Raises DataError or ConfigError for what is wrong with them."""
    config = loaded.config
    rows = find_rows(registry, config, loaded.origins)
    return CalibrationPlan(
        rows=rows,
        survey=rows.survey(context.progress),
        own=calibration_rows(registry, config),
        objective=choose(registry, OBJECTIVE, config.objective.name or DEFAULT_OBJECTIVE, config.objective.options),
        render=render_options(config.data),
        loaded=loaded,
    )
