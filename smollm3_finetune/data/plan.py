"""From a configuration to its rows: names and options are checked before any row is read."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from smollm3_finetune.components.kinds import FORMATTER, OBJECTIVE
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent, choose, with_options
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.config.schema import DEFAULT_OBJECTIVE, DataConfig, RunConfig
from smollm3_finetune.data.chat_template.renderer import RenderOptions
from smollm3_finetune.data.chat_template.syntax import check_syntax
from smollm3_finetune.data.needs import Needs
from smollm3_finetune.data.rows import Rows, with_formatter
from smollm3_finetune.data.sources import Source, find_sources, find_validation, pinned, with_unique_titles
from smollm3_finetune.errors import Collector, ConfigError
from smollm3_finetune.files.limits import CONFIG_SIZE, read_text
from smollm3_finetune.paths import user_path


@dataclass(frozen=True, kw_only=True)
class SelectedRows:
    """The parts of a configuration that concern rows: sources, objective, formatter, rendering. No row is read yet."""

    config: RunConfig
    objective: SelectedComponent
    formatter: SelectedComponent | None
    """None: for each source, the one that recognizes its first row."""
    sources: Sequence[Source]
    """Those of data.path, then those of data.validation."""
    calibration: Sequence[Source] | None
    """Separate calibration rows; None: the training rows."""
    render: RenderOptions

    def rows(self, registry: Registry) -> Rows:
        """The training rows, each source with its formatter. Reads the first row of sources that name no formatter.

        Raises ConfigError if formatter options are set and the sources use several formatters.
        """
        formatter, data = self.formatter, self.config.data
        sources, options = [pinned(s) for s in self.sources], self.config.formatter.options
        ignored = frozenset(data.ignore_columns)

        def limit(source: Source) -> int | None:
            return None if source.validation else data.limit

        if formatter is None and options:
            found = [with_formatter(registry, s, None, limit(s), ignored).formatter.component for s in sources]
            names = sorted({component.full_name for component in found})
            if len(names) > 1:
                raise ConfigError(
                    f"formatter.{next(iter(options))}: the sources use several formatters ({', '.join(names)})",
                    hint=f"choose the formatter of this option: --formatter {names[0].rpartition(':')[2]}",
                )
            formatter = with_options(found[0], self.config.formatter)
        read = tuple(with_formatter(registry, s, formatter, limit(s), ignored) for s in sources)
        spec = self.objective.component.spec
        needs = Needs(fields=tuple(getattr(spec, "fields", ())), objective=self.objective.component.title)
        return Rows(
            sources=read,
            seed=data.seed,
            held_out=data.held_out,
            uses_labels=self._uses_labels(),
            needs=needs,
            registry=registry,
        )

    def _uses_labels(self) -> bool:
        return bool(getattr(self.objective.component.spec, "uses_labels", False))

    def calibration_rows(self, registry: Registry) -> Rows | None:
        """The rows of `calibration.path`, each source with the formatter that recognizes it; None if it is unset."""
        if self.calibration is None:
            return None
        ignored = frozenset(self.config.data.ignore_columns)
        read = tuple(with_formatter(registry, pinned(s), None, None, ignored) for s in self.calibration)
        return Rows(sources=read, seed=self.config.data.seed, held_out=0.0, uses_labels=self._uses_labels())


def select_rows(registry: Registry, loaded: LoadedConfig) -> SelectedRows:
    """Look up the objective, the formatter and the sources. Does not import torch or read rows.

    Raises all independent problems together.
    """
    config, origins = loaded.config, loaded.origins
    collect = Collector()
    objective_name, named = config.objective.name or DEFAULT_OBJECTIVE, config.formatter.name
    objective = collect.run(lambda: choose(registry, OBJECTIVE, objective_name, config.objective, origins))
    formatter = None
    if named is not None:
        formatter = collect.run(lambda: choose(registry, FORMATTER, named, config.formatter, origins))
    sources = collect.run(lambda: find_sources(config.data.path))
    validation: Sequence[Source] | None = ()
    if (held_out_rows := config.data.validation) is not None:
        validation = collect.run(lambda: find_validation(held_out_rows))
        collect.run(lambda: _check_one_kind_of_held_out_rows(loaded))
    own = None
    if config.calibration.path is not None:
        own = collect.run(lambda: find_sources(config.calibration.path, "calibration.path"))
    render = collect.run(lambda: render_options(config.data))
    collect.finish()
    assert objective is not None and sources is not None and validation is not None and render is not None
    return SelectedRows(
        config=config,
        objective=objective,
        formatter=formatter,
        sources=with_unique_titles([*sources, *validation]),
        calibration=own,
        render=render,
    )


def _check_one_kind_of_held_out_rows(loaded: LoadedConfig) -> None:
    """Raises ConfigError if a fraction is held out in addition to the rows of `data.validation`."""
    if loaded.config.data.held_out and "data.held_out" in loaded.origins:
        raise ConfigError(
            f"{loaded.origin('data.held_out')}: data.held_out cannot be used with data.validation, "
            "whose rows are the held-out rows",
            hint="remove one of them",
        )


def render_options(data: DataConfig) -> RenderOptions:
    """The render options of a configuration. Raises ConfigError if the template or the date is invalid."""
    template = None
    if data.template is not None:
        try:
            template = read_text(user_path(data.template, "data.template"), CONFIG_SIZE, "utf-8-sig")
        except FileNotFoundError as e:
            raise ConfigError(f"the chat template file {data.template!r} (data.template) does not exist") from e
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", None) or e
            raise ConfigError(f"the chat template data.template={data.template} cannot be read: {reason}") from e
        check_syntax(template, data.template)
    if data.date is not None:
        try:
            datetime.date.fromisoformat(data.date)
        except ValueError as e:
            raise ConfigError(
                f"data.date: expected YYYY-MM-DD, got {data.date!r}", hint="--set data.date=2026-01-01"
            ) from e
    return RenderOptions(template=template, enable_thinking=data.enable_thinking, history=data.history, date=data.date)
