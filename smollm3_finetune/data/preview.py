"""What becomes of rows: each one as a run would prepare it, with its place, what is learned of it, and counts.

Rows go through the objective itself, so what is counted is what a run trains on. Nothing is written and no weights
are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smollm3_finetune.api.data import IGNORED
from smollm3_finetune.components.selection import Choice
from smollm3_finetune.data.render import Encoded, Renderer
from smollm3_finetune.data.rows import Placed, Rows, Survey
from smollm3_finetune.data.split import position
from smollm3_finetune.data.tokens import Preparing, copies
from smollm3_finetune.errors import DataError, SmolLM3Error, raise_all

PLACES = 5
"""How many places of left-out rows are kept."""
REASONS = {
    "turn rewritten by the template": "the template rewrites its answers, so that no prompt leads to them",
    "earlier reasoning stripped": "answers whose reasoning is stripped are not learned (data.history=strip)",
    "empty turn": "empty turn: an answer that says nothing, or nothing but its reasoning, is not learned",
}
"""What a note means where nothing in a row is learned."""
NO_LIMIT = 1 << 30
"""A longest length, in tokens, that cuts nothing."""


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """One sequence of tokens that a row became."""

    name: str
    """`""` where there is one, else what the objective calls it: `chosen`, `rejected`."""
    ids: Sequence[int]
    learned: Sequence[bool]
    """Whether the loss looks at each token. The first never counts: nothing comes before it."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A row as a run would train on it."""

    where: str
    side: str
    """`train`, `held out` or `left out`."""
    held_out: bool
    """The side it falls on, also where it was left out."""
    why: str
    """Why it was left out, else empty."""
    enough: int | None
    """The longest length, in tokens, with which a row that was left out would not have been."""
    copies: int
    """How often it is seen in one pass; 0 for a row that its source's weight skips."""
    sequences: tuple[TokenSequence, ...]
    length: int
    """Tokens before anything was cut; of its longest sequence, where there are several."""
    uncut: int
    """Tokens before anything was cut, of all its sequences."""
    notes: tuple[str, ...]
    """What was changed on the way: `cut`, `trace stripped`, …"""

    @property
    def tokens(self) -> int:
        return sum(len(s.ids) for s in self.sequences)

    @property
    def learned(self) -> int:
        return sum(sum(s.learned) for s in self.sequences)


class _Recorder(Renderer):
    """Remembers what an objective had encoded."""

    def __init__(self, renderer: Renderer) -> None:
        super().__init__(renderer.tokenizer, renderer.options)
        self.made: list[Encoded] = []

    def encode(self, conversation: Any, max_length: int) -> Encoded:
        encoded = super().encode(conversation, max_length)
        self.made.append(encoded)
        return encoded


class Inspector:
    """Prepares rows one by one as `data.tokens.tokenize` does, and keeps what that throws away."""

    def __init__(self, rows: Rows, survey: Survey, objective: Choice, renderer: Renderer, max_length: int) -> None:
        self.rows, self.border, self.max_length = rows, survey.border, max_length
        self.renderer = _Recorder(renderer)
        self.example = Preparing(objective, self.renderer, max_length)

    def placed(self, source: int, wanted: Iterator[bool]) -> Iterator[Placed]:
        """The rows of one source for which `wanted`, which says so for each, is true."""
        conversations = self.rows.sources[source].conversations()
        for (where, conversation), taken in zip(conversations, wanted, strict=True):
            if taken:
                yield Placed(source, where, position(conversation, self.rows.seed), conversation)

    def prepare(self, row: Placed) -> Prepared:
        """Raises DataError or PluginError with the row's place, as a run would."""
        self.renderer.made.clear()
        example = self.example(row)
        made, notes = tuple(self.renderer.made), tuple(sorted(self.renderer.counts))
        sequences = _sequences(example, made)
        held_out = row.position < self.border
        lengths = [e.length for e in made] or [len(s.ids) for s in sequences] or [0]
        weight = self.rows.sources[row.source].source.config.weight
        why, enough = self._why(row, notes) if example is None else ("", None)
        return Prepared(
            where=row.where,
            side="left out" if example is None else "held out" if held_out else "train",
            held_out=held_out,
            why=why,
            enough=enough,
            copies=copies(weight, row.position) if example is not None and not held_out else 0,
            sequences=sequences,
            length=max(lengths),
            uncut=sum(lengths),
            notes=notes,
        )

    def _why(self, row: Placed, notes: Sequence[str]) -> tuple[str, int | None]:
        """Why nothing in a row is learned, and the longest length that would do, where that is why."""
        conversation = row.conversation
        if conversation.text is None and not conversation.learned_messages():
            return "none of its messages is to be learned from", None
        whole = self.renderer.encode(conversation, NO_LIMIT)
        first = next((t for t, label in enumerate(whole.labels) if t and label != IGNORED), None)
        if first is not None and first >= self.max_length:
            return f"what is learned begins at token {first}, past data.max_length={self.max_length}", first + 1
        reasons = [why for note, why in REASONS.items() if note in notes]
        return "; ".join(reasons) or "the objective finds nothing to learn in it", None


def _sequences(example: Mapping[str, Sequence[int]] | None, made: Sequence[Encoded]) -> tuple[TokenSequence, ...]:
    """The `…input_ids` of an example that have `…labels` beside them; else what was encoded for it."""
    found = []
    for key, ids in (example or {}).items():
        prefix = key.removesuffix("input_ids")
        labels = (example or {}).get(f"{prefix}labels")
        if key.endswith("input_ids") and labels is not None and len(labels) == len(ids):
            found.append(_sequence(prefix.rstrip("_"), ids, labels))
    if found:
        return tuple(found)
    names = [""] if len(made) == 1 else [f"sequence {i}" for i in range(len(made))]
    return tuple(_sequence(name, e.input_ids, e.labels) for name, e in zip(names, made, strict=True))


def _sequence(name: str, ids: Sequence[int], labels: Sequence[int]) -> TokenSequence:
    return TokenSequence(name=name, ids=ids, learned=[t > 0 and label != IGNORED for t, label in enumerate(labels)])


def sampled(total: int, wanted: int) -> Iterator[bool]:
    """For each of `total` rows, whether it is among about `wanted` evenly spaced ones: exactly min(wanted, total)."""
    wanted = min(wanted, total)
    return ((i + 1) * wanted // total > i * wanted // total for i in range(total))


@dataclass(kw_only=True)
class SourceStats:
    """Counts over the rows of one source. `rows == train + held_out + empty`."""

    title: str
    formatter: str
    weight: float = 1.0
    rows: int = 0
    train: int = 0
    held_out: int = 0
    empty: int = 0
    """Rows left out because nothing in them is learned."""
    rows_per_pass: int = 0
    """Training rows seen in one pass: `train`, multiplied by the weight."""
    cut: int = 0
    """Rows longer than the longest length."""
    tokens: int = 0
    """In the rows that are kept, after cutting."""
    tokens_learned: int = 0
    tokens_cut: int = 0
    """Lost by cutting, in all rows."""
    notes: Counter[str] = field(default_factory=Counter)
    """Rows by note, `cut` apart."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Rows by length in tokens before cutting."""
    longest: int = -1
    longest_row: str | None = None
    empty_rows: list[tuple[str, str]] = field(default_factory=list)
    """(place, why) of the first rows that were left out."""
    first_empty: dict[bool, Prepared] = field(default_factory=dict)
    """The first row that was left out of those to train on (False) and of those held out (True)."""

    def add(self, row: Prepared) -> None:
        self.rows += 1
        self.train += row.side == "train"
        self.held_out += row.side == "held out"
        self.rows_per_pass += row.copies
        if row.side == "left out":
            self.empty += 1
            self.first_empty.setdefault(row.held_out, row)
            if len(self.empty_rows) < PLACES:
                self.empty_rows.append((row.where, row.why))
        else:
            self.tokens += row.tokens
            self.tokens_learned += row.learned
        self.cut += "cut" in row.notes
        self.tokens_cut += max(row.uncut - row.tokens, 0)
        self.notes.update(n for n in row.notes if n != "cut")
        if row.length > self.longest:
            self.longest, self.longest_row = row.length, row.where
        self.lengths[row.length] += 1

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; lengths are in tokens before cutting."""
        quantiles = Quantiles(self.lengths)
        return {
            "title": self.title,
            "formatter": self.formatter,
            "weight": self.weight,
            "rows": self.rows,
            "train": self.train,
            "held_out": self.held_out,
            "empty": self.empty,
            "empty_rows": [{"where": where, "why": why} for where, why in self.empty_rows],
            "rows_per_pass": self.rows_per_pass,
            "cut": self.cut,
            "notes": dict(sorted(self.notes.items())),
            "tokens": self.tokens,
            "tokens_learned": self.tokens_learned,
            "tokens_cut": self.tokens_cut,
            "length": quantiles.as_dict() if self.rows else None,
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
    """About `bars` bars of one round width, and one more for the long tail where there is one."""
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


def refuse_if_nothing_is_learned(stats: Sequence[SourceStats], survey: Survey) -> None:
    """Raises DataErrors where all rows to train on, or all held-out ones, were left out: a run would be refused too.

    `stats` are those of every row that the survey counted.
    """
    sides = (
        ("training", False, sum(survey.train), sum(s.train for s in stats)),
        ("held-out", True, sum(survey.held_out), sum(s.held_out for s in stats)),
    )
    problems: list[SmolLM3Error] = []
    for name, held_out, before, left in sides:
        if not before or left:
            continue
        row = next(s.first_empty[held_out] for s in stats if held_out in s.first_empty)
        several = f"none of the {before} {name} rows has anything to learn; the first is"
        what = several if before > 1 else f"the only {name} row has nothing to learn:"
        hint = "--set data.held_out=0" if held_out else "smollm3 data preview"
        hint = f"--max-length {row.enough}" if row.enough is not None else hint
        problems.append(DataError(f"{what} {row.where}: {row.why}", hint=hint))
    raise_all(problems)
