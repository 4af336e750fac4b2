"""Counts, lengths and the first rows of a run with their loss masks, as data.json holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from smollm3_finetune.data.examples import Examples
from smollm3_finetune.data.prepared_row import Prepared
from smollm3_finetune.data.preview import Inspector
from smollm3_finetune.data.shown_tokens import segments
from smollm3_finetune.data.stats import Quantiles, histogram
from smollm3_finetune.data.tokenization import SourceCounts

ROWS = 3
"""Rows whose text is kept."""
CHARACTERS = 4000
"""Characters that are kept of each of their sequences."""
SEQUENCES = 3
"""Sequences that are kept of a row."""


def counts(train: Examples, held_out: Sequence[Examples], sources: Sequence[SourceCounts]) -> dict[str, Any]:
    """Counts by source, and the lengths in tokens of the training and the held-out examples."""
    lengths = {"train": Counter(train.each_length()), "held_out": Counter(n for e in held_out for n in e.each_length())}
    return {
        "sources": [asdict(c) for c in sources],
        "lengths": {
            name: {
                **Quantiles(found).as_dict(),
                "examples": sum(found.values()),
                "tokens": sum(length * times for length, times in found.items()),
                "histogram": [asdict(bar) for bar in histogram(found)],
            }
            for name, found in lengths.items()
            if found
        },
    }


def first_rows(inspector: Inspector) -> list[dict[str, Any]]:
    """The first rows with their loss masks, from the sources in turn."""
    rows = inspector.rows
    readers = []
    for i in range(min(len(rows.sources), ROWS)):
        readers.append((i, rows.of_source(i)))
    found: list[dict[str, Any]] = []
    while readers and len(found) < ROWS:
        index, reader = readers.pop(0)
        if (row := next(reader, None)) is not None:
            title = rows.sources[index].source.title
            found.append({"source": title, **_shown(inspector.prepare(row), inspector.renderer.tokenizer)})
            readers.append((index, reader))
    return found


def _shown(row: Prepared, tokenizer: Any) -> dict[str, Any]:
    sequences = []
    for sequence in row.sequences[:SEQUENCES]:
        room, kept, whole = CHARACTERS, [], segments(tokenizer, sequence)
        for part, supervised in whole:
            if room > 0:
                kept.append([part[:room], supervised])
            room -= len(part)
        sequences.append({"name": sequence.name, "segments": kept, "more": max(-room, 0)})
    return {
        "where": row.where,
        "side": row.side,
        "why": row.why,
        "tokens": row.tokens,
        "supervised": row.supervised,
        "length": row.length,
        "notes": list(row.notes),
        "sequences": sequences,
        "more_sequences": max(len(row.sequences) - SEQUENCES, 0),
    }
