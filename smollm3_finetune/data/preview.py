"""What becomes of rows: each one as a run would prepare it, with its place, what is learned of it, and counts.

Rows go through the objective itself, so what is counted is what a run trains on. Nothing is written and no weights
are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api.data import IGNORED
from smollm3_finetune.components.selection import Choice
from smollm3_finetune.data.chat_template.renderer import Encoded, Renderer
from smollm3_finetune.data.rows import Placed, Rows, Survey
from smollm3_finetune.data.split import position
from smollm3_finetune.data.tokenization import Preparing, copies

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
