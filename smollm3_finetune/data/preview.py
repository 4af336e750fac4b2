"""Rows as a run would prepare them: the location, tokens and supervised tokens of each, and counts.

Rows are prepared by the objective itself, so the counts are those of a training run. Nothing is written, and no
weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from smollm3_finetune.api import Progress
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.data.chat_template.renderer import Encoded, Renderer
from smollm3_finetune.data.chunks import CHUNKED
from smollm3_finetune.data.left_out import reason
from smollm3_finetune.data.planned_rows import PlannedRows, plan_rows
from smollm3_finetune.data.prepared_row import Prepared
from smollm3_finetune.data.rows import PositionedRow, Rows, Survey
from smollm3_finetune.data.sequences import numbered_sequences, sequences_of
from smollm3_finetune.data.stats import SourceStats
from smollm3_finetune.data.tokenization import ExampleBuilder, copies
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.model.new_tokens import NewToken
from smollm3_finetune.runs.start_from import Started


class _Recorder(Renderer):
    """Records the conversations that an objective encodes."""

    def __init__(self, renderer: Renderer) -> None:
        super().__init__(renderer.tokenizer, renderer.options, embeddings=renderer.embeddings)
        self.made: list[Encoded] = []

    def recorded(self, encoded: Encoded) -> Encoded:
        self.made.append(encoded)
        return encoded


class Inspector:
    """Prepares rows one by one as `tokenize` does, and keeps the details that `tokenize` discards."""

    def __init__(
        self,
        rows: Rows,
        survey: Survey | None,
        objective: SelectedComponent,
        renderer: Renderer,
        max_length: int,
        *,
        chunk: bool,
    ) -> None:
        """Without `survey`, no row of data.path is held out."""
        self.rows, self.survey, self.max_length = rows, survey, max_length
        self.renderer = _Recorder(renderer)
        self.examples = ExampleBuilder(objective, self.renderer, max_length, chunk=chunk)

    def positioned(self, source: int, wanted: Iterator[bool]) -> Iterator[PositionedRow]:
        """The rows of one source whose value in `wanted` (one for each row) is true."""
        conversations = self.rows.sources[source].conversations()
        for (where, conversation), taken in zip(conversations, wanted, strict=True):
            if taken:
                yield self.rows.row(source, where, conversation)

    def prepare(self, row: PositionedRow) -> Prepared:
        """The row as a run would prepare it. Raises DataError or PluginError with its location, as a run would."""
        self.renderer.made.clear()
        examples = self.examples(row)
        made, notes = tuple(self.renderer.made), tuple(sorted(self.renderer.counts))
        chunks = len(examples) if CHUNKED in notes else 0
        if len(examples) > 1:
            sequences = numbered_sequences(examples, made, "chunk" if chunks else "example")
        else:
            pair = row.conversation.rejected is not None
            sequences = sequences_of(next(iter(examples), None), made, pair=pair)
        held_out = self.survey.holds_out(row) if self.survey is not None else row.validation
        lengths = [e.length for e in made] or [len(s.ids) for s in sequences] or [0]
        weight = self.rows.sources[row.source].source.config.weight
        left_out = None if examples else reason(row, notes, self.renderer, self.max_length)
        return Prepared(
            where=row.where,
            side="left out" if not examples else "held out" if held_out else "train",
            held_out=held_out,
            why=left_out.why if left_out is not None else "",
            enough=left_out.enough if left_out is not None else None,
            by_objective=left_out is not None and left_out.by_objective,
            copies=copies(weight, row.position) if examples and not held_out else 0,
            chunks=chunks,
            undesirable=row.undesirable,
            missing=row.missing,
            sequences=sequences,
            length=max(lengths),
            removed=0 if chunks else sum(e.length - len(e.input_ids) for e in made),
            notes=notes,
            shares=self.examples.shares,
        )


def sampled(total: int, wanted: int) -> Iterator[bool]:
    """For each of `total` rows, whether it is in an evenly spaced sample of exactly min(wanted, total) rows."""
    wanted = min(wanted, total)
    return ((i + 1) * wanted // total > i * wanted // total for i in range(total))


@dataclass(frozen=True, kw_only=True)
class About:
    """The settings that determine the tokens."""

    model: str
    objective: str
    max_length: int
    held_out: float
    """The fraction of the rows of data.path; 0 with `data.validation`."""
    validation: bool
    """Whether data.validation names the held-out rows."""
    seed: int
    """data.seed"""
    warning: str | None
    """Training rows that are also in data.validation."""

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Rows that can be shown and counted."""

    about: About
    inspector: Inspector
    survey: Survey
    progress: Progress
    declared: Sequence[str] = ()
    """The tokens of `data.add_tokens`."""
    new_tokens: Sequence[NewToken] = ()

    def sources(self, wanted: int | None) -> list[int]:
        """The indices of the sources to show. Raises ConfigError if `wanted` does not exist."""
        titles = [s.source.title for s in self.inspector.rows.sources]
        if wanted is None:
            return list(range(len(titles)))
        if wanted >= len(titles):
            known = ", ".join(f"{i} ({title})" for i, title in enumerate(titles))
            raise ConfigError(f"--source {wanted}: there is no source {wanted}", hint=f"available sources: {known}")
        return [wanted]

    def total(self, source: int) -> int:
        return self.survey.total(source)

    def first(self, source: int, rows: int) -> list[Prepared]:
        total = self.total(source)
        positioned = self.inspector.positioned(source, sampled(total, total))
        return [self.inspector.prepare(row) for row in islice(positioned, rows)]

    def count(self, source: int, sample: int | None = None) -> SourceStats:
        """The counts of a source, over `sample` evenly spaced rows or over all."""
        from smollm3_finetune.data.preview import sampled
        from smollm3_finetune.data.stats import SourceStats

        about = self.inspector.rows.sources[source]
        total = self.total(source)
        stats = SourceStats(
            title=about.source.title,
            formatter=about.formatter.component.full_name,
            weight=about.source.config.weight,
            validation=about.source.validation,
            not_read=self.survey.unread[source],
            declared=self.declared,
            added=self.new_tokens,
        )
        wanted = total if sample is None else min(sample, total)
        with self.progress.task(f"counting {about.source.title}", wanted) as task:
            for row in self.inspector.positioned(source, sampled(total, wanted)):
                stats.add(self.inspector.prepare(row))
                task.advance()
        return stats


def plan_preview(registry: Registry, loaded: LoadedConfig, progress: Progress, start: Started | None = None) -> Preview:
    """Plan the rows as `plan_rows` does, and read each once."""
    config, planned = loaded.config, plan_rows(registry, loaded, progress, start)
    survey = planned.rows.survey(progress, must_train=False)
    return Preview(
        about=About(
            model=config.model,
            objective=planned.objective.component.full_name,
            max_length=planned.max_length,
            held_out=planned.rows.fraction,
            validation=config.data.validation is not None,
            seed=config.data.seed,
            warning=survey.overlap_warning(),
        ),
        inspector=inspector_of(planned, survey),
        survey=survey,
        progress=progress,
        declared=planned.declared,
        new_tokens=planned.new_tokens,
    )


def inspector_of(planned: PlannedRows, survey: Survey | None) -> Inspector:
    return Inspector(planned.rows, survey, planned.objective, planned.renderer, planned.max_length, chunk=planned.chunk)
