"""Counts over rows: training, held out, left out and truncated, with their tokens and lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from smollm3_finetune.data.left_out import LeftOut, Side, more_useful
from smollm3_finetune.data.new_token_rows import add_row, no_rows_yet
from smollm3_finetune.data.prepared_row import Prepared
from smollm3_finetune.data.rows import Survey
from smollm3_finetune.data.shares import Shares
from smollm3_finetune.model.new_tokens import NewToken

PLACES = 5
"""How many left-out rows are listed with their location."""


@dataclass(kw_only=True)
class SourceStats:
    """Counts over the rows of one source. `rows == train + held_out + empty + undesirable + missing.total()`."""

    title: str
    formatter: str
    weight: float = 1.0
    validation: bool = False
    """Whether it is named by `data.validation`."""
    rows: int = 0
    train: int = 0
    held_out: int = 0
    empty: int = 0
    """Rows left out because they have no supervised tokens."""
    undesirable: int = 0
    """Rows left out because their label is false."""
    missing: Counter[str] = field(default_factory=Counter)
    """Rows left out because they lack a field that the objective needs, by reason."""
    chunks: int = 0
    """Pieces of the rows of long text that were split."""
    rows_per_pass: int = 0
    """Training rows used per pass: `train`, multiplied by the weight."""
    cut: int = 0
    """Rows longer than the maximum length."""
    tokens: int = 0
    """Tokens of the rows that are not left out, after cutting."""
    tokens_supervised: int = 0
    tokens_cut: int = 0
    """Tokens removed by cutting, in all rows."""
    shares: Shares = field(default_factory=Shares)
    """Answers and tool calls that are trained on or not."""
    notes: Counter[str] = field(default_factory=Counter)
    """Rows by note, without `cut`."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Rows by length in tokens before truncation."""
    parts: dict[str, Counter[int]] = field(default_factory=dict)
    """For prompts and answers of pairs: rows by length in tokens after truncation."""
    longest: int = -1
    longest_row: str | None = None
    empty_rows: list[tuple[str, str]] = field(default_factory=list)
    """(where, why) of the first rows that were left out."""
    left_out: dict[bool, LeftOut] = field(default_factory=dict)
    """For training rows (False) and for held-out rows (True): the first row left out, if possible for its length."""
    not_read: Mapping[str, int] = field(default_factory=dict)
    """Columns that the formatter does not read, and the number of rows that have a value in each, over all rows."""
    declared: Sequence[str] = ()
    """The tokens of `data.add_tokens`."""
    added: Sequence[NewToken] = ()
    """The tokens that the model gets."""
    new_tokens: Counter[str] = field(default_factory=Counter)
    """Training rows that hold each of them, after cutting."""

    def __post_init__(self) -> None:
        self.new_tokens.update(no_rows_yet(self.added))

    def add(self, row: Prepared) -> None:
        self.rows += 1
        self.train += row.side == "train"
        self.held_out += row.side == "held out"
        self.rows_per_pass += row.copies
        if row.missing:  # it is not tokenized
            self.missing[row.missing] += 1
            return
        if row.undesirable:  # neither
            self.undesirable += 1
            return
        if row.side == "left out":
            self.empty += 1
            this = LeftOut(row.where, row.why, row.enough, by_objective=row.by_objective)
            self.left_out[row.held_out] = more_useful(self.left_out.get(row.held_out), this)
            if len(self.empty_rows) < PLACES:
                self.empty_rows.append((row.where, row.why))
        else:
            self.tokens += row.tokens
            self.tokens_supervised += row.supervised
            for name, tokens in row.parts.items():
                self.parts.setdefault(name, Counter())[tokens] += 1
        if row.side == "train":
            add_row(self.new_tokens, self.added, (s.ids for s in row.sequences))
        self.chunks += row.chunks
        self.cut += "cut" in row.notes
        self.tokens_cut += row.removed
        self.shares.add(row.shares)
        self.notes.update(n for n in row.notes if n != "cut")
        if row.length > self.longest:
            self.longest, self.longest_row = row.length, row.where
        self.lengths[row.length] += 1

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; lengths are in tokens before truncation."""
        quantiles = Quantiles(self.lengths)
        return {
            "title": self.title,
            "formatter": self.formatter,
            "weight": self.weight,
            "validation": self.validation,
            "rows": self.rows,
            "train": self.train,
            "held_out": self.held_out,
            "empty": self.empty,
            "undesirable": self.undesirable,
            "missing": dict(self.missing),
            "empty_rows": [{"where": where, "why": why} for where, why in self.empty_rows],
            "rows_per_pass": self.rows_per_pass,
            "cut": self.cut,
            "chunks": self.chunks,
            "notes": dict(sorted(self.notes.items())),
            "not_read": dict(self.not_read),
            "new_tokens": dict(self.new_tokens),
            **asdict(self.shares),
            "tokens": self.tokens,
            "tokens_supervised": self.tokens_supervised,
            "tokens_cut": self.tokens_cut,
            "parts": {name: Quantiles(lengths).as_dict() for name, lengths in self.parts.items()},
            "length": quantiles.as_dict() if self.lengths else None,
            "longest_row": self.longest_row,
        }


class Quantiles:
    """Order statistics of integers that are given as counts."""

    def __init__(self, counts: Counter[int]) -> None:
        self.values = sorted(counts.items())
        self.count = sum(counts.values())

    def at(self, rank: int) -> int:
        """The value at a rank, counted from 1."""
        for value, times in self.values:
            rank -= times
            if rank <= 0:
                return value
        return self.values[-1][0]

    def median(self) -> float:
        """The middle value, or the mean of the two."""
        return (self.at((self.count + 1) // 2) + self.at(self.count // 2 + 1)) / 2

    def p95(self) -> int:
        """The smallest value that 95 % of them do not exceed."""
        return self.at(-(-self.count * 95 // 100))

    def mean(self) -> float:
        return sum(v * times for v, times in self.values) / self.count

    def as_dict(self) -> dict[str, float]:
        return {
            "min": self.at(1),
            "median": self.median(),
            "mean": round(self.mean(), 2),
            "p95": self.p95(),
            "max": self.at(self.count),
        }


@dataclass(frozen=True)
class Bar:
    """Rows of low ≤ length ≤ high."""

    low: int
    high: int
    rows: int


def histogram(lengths: Counter[int], bars: int = 10) -> list[Bar]:
    """About `bars` bars of one round width; if there is a long tail, the last bar covers it."""
    if not lengths:
        return []
    low, top = min(lengths), max(lengths)
    p95 = Quantiles(lengths).p95()
    high = top if top <= 2 * p95 else p95
    least = max(-(-(high - low) // bars), 1)
    scale = 10 ** (len(str(least)) - 1)
    width = next(n * scale for n in (1, 2, 5, 10) if n * scale >= least)
    edges = list(range(low // width * width, high + 1, width))
    made = []
    for i, edge in enumerate(edges):
        end = edge + width - 1 if i + 1 < len(edges) or top < edge + width else top
        made.append(Bar(edge, end, sum(n for value, n in lengths.items() if edge <= value <= end)))
    return made


def sides(stats: Sequence[SourceStats], survey: Survey) -> list[Side]:
    """Both sides of the split, for `refuse_if_nothing_is_supervised`; `stats` must cover every row of the survey."""
    left = {False: sum(s.train for s in stats), True: sum(s.held_out for s in stats)}
    before = {False: sum(survey.train), True: sum(survey.held_out)}
    names = {False: "training", True: "held-out"}
    found = []
    for side, name in names.items():
        row = None
        for source in stats:
            if side in source.left_out:
                row = more_useful(row, source.left_out[side])
        found.append(Side(name, before[side], left[side], row))
    return found
