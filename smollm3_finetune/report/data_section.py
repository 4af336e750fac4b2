"""The rows of a run: counts by source, lengths, and three rows with their loss masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.data.counts import counted
from smollm3_finetune.data.shown_tokens import visible
from smollm3_finetune.report.run_view import RunView
from smollm3_finetune.report.scales import shown
from smollm3_finetune.report.values import count, items, mapping, number, text

MOST_SOURCES = 50
SIDES = {"train": "training rows", "held_out": "held-out rows"}


@dataclass(frozen=True)
class Source:
    title: str
    counts: str
    notes: Sequence[str]


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram."""

    range: str
    """The lengths, in tokens."""
    rows: str
    share: float
    """Of the longest bar, in percent."""


@dataclass(frozen=True)
class Lengths:
    title: str
    sentence: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Part:
    """A token sequence of a row."""

    name: str
    segments: Sequence[tuple[str, bool]]
    """(text, supervised)"""
    more: int
    """Characters that were not kept."""


@dataclass(frozen=True)
class Row:
    where: str
    about: str
    parts: Sequence[Part]
    more: int
    """Sequences that were not kept."""


@dataclass(frozen=True)
class DataSection:
    sources: Sequence[Source]
    lengths: Sequence[Lengths]
    rows: Sequence[Row]


def of(view: RunView) -> DataSection | None:
    """None if the run recorded nothing about its rows."""
    sources = [_source(row) for row in view.rows[:MOST_SOURCES]]
    about = mapping(view.data.get("lengths"))
    lengths = [found for name, title in SIDES.items() if (found := _lengths(title, mapping(about.get(name))))]
    rows = [_row(mapping(row)) for row in items(view.data.get("rows"))[:3]]
    return DataSection(sources, lengths, rows) if sources or lengths or rows else None


def _source(row: Mapping[str, Any]) -> Source:
    numbers = {name: count(row.get(name)) or 0 for name in ("train", "held_out", "empty", "undesirable", "chunks")}
    kept = f"{counted(numbers['train'], 'training row')}, {counted(numbers['held_out'], 'held-out row')}"
    notes = []
    if numbers["empty"]:
        notes.append(f"{counted(numbers['empty'], 'row')} left out: no supervised tokens")
    if numbers["undesirable"]:
        notes.append(f"{counted(numbers['undesirable'], 'row')} left out: false label")
    for why, times in sorted(mapping(row.get("missing")).items()):
        notes.append(f"{counted(count(times) or 0, 'row')} left out: {visible(why)}")
    if numbers["chunks"]:
        notes.append(f"long text in {counted(numbers['chunks'], 'chunk')}")
    for name, times in sorted(mapping(row.get("notes")).items()):
        rows = counted(count(times) or 0, "row")
        notes.append(f"{rows} cut to the length limit" if name == "cut" else f"{visible(name)}: {rows}")
    unread = [
        f"{visible(name)} ({counted(count(times) or 0, 'row')})" for name, times in mapping(row.get("not_read")).items()
    ]
    if unread:
        notes.append(f"columns not read: {', '.join(unread)}")
    return Source(visible(text(row.get("title")) or "rows"), kept, notes)


def _lengths(title: str, about: Mapping[str, Any]) -> Lengths | None:
    bars = [mapping(bar) for bar in items(about.get("histogram"))[:40]]
    found = [(count(b.get("low")), count(b.get("high")), count(b.get("rows"))) for b in bars]
    whole = [
        (low, high, rows) for low, high, rows in found if low is not None and high is not None and rows is not None
    ]
    most = max((rows for *_, rows in whole), default=0)
    if not most:
        return None
    examples, tokens = (count(about.get(key)) or 0 for key in ("examples", "tokens"))
    parts = [f"{counted(examples, 'example')}, {counted(tokens, 'token')}"]
    parts += [
        f"{name} {shown(value)}"
        for name, key in (("shortest", "min"), ("median", "median"), ("95th percentile", "p95"), ("longest", "max"))
        if (value := number(about.get(key))) is not None
    ]
    return Lengths(
        title,
        "; ".join(parts),
        [
            Bar(f"{low:,}–{high:,}" if high > low else f"{low:,}", f"{rows:,}", round(100 * rows / most, 1))
            for low, high, rows in whole
        ],
    )


def _row(row: Mapping[str, Any]) -> Row:
    tokens, supervised = count(row.get("tokens")) or 0, count(row.get("supervised")) or 0
    side, why = text(row.get("side")) or "", text(row.get("why")) or ""
    about = [f"{counted(tokens, 'token')}, {supervised:,} supervised", f"{side}: {why}" if why else side]
    for note in items(row.get("notes")):
        about.append(f"cut from {count(row.get('length')) or 0:,} tokens" if note == "cut" else str(note))
    return Row(
        where=visible(text(row.get("where")) or ""),
        about=visible("; ".join(filter(None, about))),
        parts=[_part(mapping(part)) for part in items(row.get("sequences"))],
        more=count(row.get("more_sequences")) or 0,
    )


def _part(part: Mapping[str, Any]) -> Part:
    pairs = [pair for pair in items(part.get("segments")) if isinstance(pair, list) and len(pair) == 2]
    segments = [(visible(str(words)), bool(supervised)) for words, supervised in pairs]
    return Part(visible(text(part.get("name")) or ""), segments, count(part.get("more")) or 0)
