"""From a configuration to the rows that it names, each source with its formatter."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.schema import DataConfig, RunConfig
from smollm3_finetune.data.chat_template.renderer import RenderOptions
from smollm3_finetune.data.chat_template.syntax import check_syntax
from smollm3_finetune.data.rows import Rows, with_formatter
from smollm3_finetune.data.sources import find_sources
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.paths import user_path


def find_rows(registry: Registry, config: RunConfig, origins: Mapping[str, str]) -> Rows:
    """The sources of a configuration, each with its formatter. Reads the first row of those that name none.

    Raises ConfigError where there are options for a formatter and the sources have several.
    """
    found, limit = find_sources(config.data.path), config.data.limit
    name, options = config.formatter.name, config.formatter.options
    if name is None and options:
        names = sorted({with_formatter(registry, s, None, limit).formatter.offer.full_name for s in found})
        if len(names) > 1:
            raise ConfigError(
                f"formatter.{next(iter(options))}: the sources have several formatters ({', '.join(names)})",
                hint=f"say whose option it is: --formatter {names[0].rpartition(':')[2]}",
            )
        (name,) = names
    named = choose(registry, FORMATTER, name, options, origins) if name is not None else None
    sources = [with_formatter(registry, s, named, limit) for s in found]
    return Rows(sources=tuple(sources), seed=config.seed, held_out=config.data.held_out)


def calibration_rows(registry: Registry, config: RunConfig) -> Rows | None:
    """The rows of `calibration.path`, each source with the formatter that recognizes it; None where there is none."""
    if config.calibration.path is None:
        return None
    sources = [with_formatter(registry, s, None, None) for s in find_sources(config.calibration.path)]
    return Rows(sources=tuple(sources), seed=config.seed, held_out=0.0)


def render_options(data: DataConfig) -> RenderOptions:
    """How the configuration asks for conversations to be rendered. Raises ConfigError for a template or a date."""
    template = None
    if data.template is not None:
        try:
            template = user_path(data.template, "data.template").read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"the chat template data.template={data.template} cannot be read: {e}") from e
        check_syntax(template, data.template)
    if data.date is not None:
        try:
            datetime.date.fromisoformat(data.date)
        except ValueError as e:
            raise ConfigError(f"data.date: expected YYYY-MM-DD, got {data.date!r}") from e
    return RenderOptions(template=template, enable_thinking=data.enable_thinking, history=data.history, date=data.date)
