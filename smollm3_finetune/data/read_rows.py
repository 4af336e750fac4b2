"""Rows one by one, with their tokens, as the commands of plugins get them (`CommandTools.rows`)."""

from __future__ import annotations

from collections.abc import Iterator

from smollm3_finetune.api import CommandRow, Progress
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.data.chat_template.renderer import Encoded
from smollm3_finetune.data.left_out import reason_before_tokens
from smollm3_finetune.data.plan import select_rows
from smollm3_finetune.data.planned_rows import plan_rows
from smollm3_finetune.data.prepared_row import Prepared, TokenSequence
from smollm3_finetune.data.preview import inspector_of
from smollm3_finetune.data.rows import PositionedRow, Rows
from smollm3_finetune.runs.start_from import Started


def read_rows(
    registry: Registry, loaded: LoadedConfig, progress: Progress, start: Started | None, *, tokens: bool
) -> Iterator[CommandRow]:
    """The rows of every source, in order. Names and options are checked in the call; then rows are read one by one.

    Without `tokens`, no model is opened.
    """
    if not tokens:
        rows = select_rows(registry, loaded).rows(registry)
        return (_untokenized(row) for row in _positioned(rows))
    planned = plan_rows(registry, loaded, progress, start)
    inspector = inspector_of(planned, None)
    return (_tokenized(row, inspector.prepare(row)) for row in _positioned(planned.rows))


def _positioned(rows: Rows) -> Iterator[PositionedRow]:
    """Every row, source by source."""
    for source in range(len(rows.sources)):
        yield from rows.of_source(source)


def _untokenized(row: PositionedRow) -> CommandRow:
    return CommandRow(where=row.where, conversation=row.conversation, left_out=reason_before_tokens(row))


def _tokenized(row: PositionedRow, prepared: Prepared) -> CommandRow:
    kept = prepared.side != "left out"
    return CommandRow(
        where=row.where,
        conversation=row.conversation,
        left_out=prepared.why,
        sequences={s.name: _encoded(s) for s in prepared.sequences},
        tokens=prepared.tokens if kept else 0,
        supervised=prepared.supervised if kept else 0,
        length=prepared.length,
    )


def _encoded(sequence: TokenSequence) -> Encoded:
    pairs = zip(sequence.ids, sequence.supervised, strict=True)
    labels = [token if trained else IGNORE_INDEX for token, trained in pairs]
    return Encoded(input_ids=list(sequence.ids), labels=labels, length=len(sequence.ids))
