"""Rows as tokens: written to the cache once as Arrow files, then memory-mapped from there.

The key of the cache entry contains everything that determines the tokens: the contents of the rows, the split, the
formatting and rendering, the tokenizer, the objective and the versions. Memory use does not grow with the rows.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune import api
from smollm3_finetune.api import Conversation, Objective, Progress, options_dict
from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.components.requirements import installed_version
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.data.chat_template.notes import OWN_EXAMPLE, REWRITTEN
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.chat_template.turns import Turns
from smollm3_finetune.data.chunks import CHUNKED, ChunkRenderer
from smollm3_finetune.data.examples import Examples, _ArrowFile
from smollm3_finetune.data.left_out import LeftOut, Side, more_useful, reason, refuse_if_nothing_is_supervised
from smollm3_finetune.data.new_token_rows import add_row, no_rows_yet
from smollm3_finetune.data.rows import PositionedRow, Rows, Survey
from smollm3_finetune.data.shares import Shares, shares
from smollm3_finetune.errors import DataError, first_line, is_resource_error
from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.model.new_tokens import NewToken
from smollm3_finetune.version import __version__

CONTENT = "content.sha256"
LAYOUT = 4
"""Of a cache entry, and of the examples that a row gives; entries with another one are made again."""


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """Counts of the prepared rows of one source."""

    title: str
    train: int
    """Training rows, each counted once regardless of its weight."""
    held_out: int
    empty: int
    """Other rows left out because they have no supervised tokens within the maximum length."""
    notes: Mapping[str, int]
    """Changes and the number of rows with each: `cut`, `chunked`, `trace stripped`, …"""
    chunks: int = 0
    """The pieces of the rows of long text that were split; each is an example of its own."""
    undesirable: int = 0
    """Rows left out because their label is false."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """Rows left out because they lack a field that the objective needs, by reason."""
    in_validation: int = 0
    """Training rows that are also in `data.validation`."""
    not_read: Mapping[str, int] = field(default_factory=dict)
    """Columns that the formatter does not read, and the number of rows that have a value in each."""
    shares: Shares = field(default_factory=Shares)
    """Answers and tool calls of these rows that are trained on or not."""
    new_tokens: Mapping[str, int] = field(default_factory=dict)
    """For each new token, the number of training rows that hold it within the maximum length."""

    @property
    def rows(self) -> int:
        return self.train + self.held_out + self.empty + self.undesirable + sum(self.missing.values())


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokenized training and held-out rows."""

    train: Examples
    held_out: list[Examples]
    """One for each source."""
    held_out_rows: list[list[int]]
    """For each source, the number of examples of each held-out row that has some."""
    counts: list[SourceCounts]
    identity: str
    """A fingerprint of the rows and of everything that determines their tokens, except versions of libraries."""
    content: str
    """A hash of the tokens themselves, which other versions of the components may produce too."""

    def held_out_content(self) -> str:
        """A hash of the tokens of the held-out rows: losses of models that were measured on equal ones are comparable.

        Titles, paths, and sources of which no row is held out do not count.
        """
        sources = zip(self.held_out, self.held_out_rows, strict=True)
        return fingerprint([[file_sha256(examples.file), rows] for examples, rows in sources if rows])


def tokenize(
    rows: Rows,
    survey: Survey,
    objective: SelectedComponent,
    renderer: Renderer,
    max_length: int,
    cache: Cache,
    progress: Progress,
    *,
    chunk: bool = False,
    new_tokens: Sequence[NewToken] = (),
) -> Tokens:
    """The rows as tokens, from the cache if it has them; the training rows that hold each of `new_tokens` are counted.

    With `chunk`, raw text longer than `max_length` becomes several examples; otherwise it is cut, like conversations.
    Raises DataError, with file and line, if a row is invalid, and if no row is left to train on.
    """
    inputs = _inputs(rows, survey, objective, renderer, max_length, chunk=chunk)
    key = {
        **inputs,
        "today": None if renderer.options.date else datetime.date.today().isoformat(),
        "versions": [__version__, installed_version("transformers")],
        "stops": renderer.endings.stops if renderer.template else [],
        "layout": LAYOUT,
        "embeddings": renderer.embeddings,
        **({"new_tokens": [token.text for token in new_tokens]} if new_tokens else {}),
    }
    identity = fingerprint(inputs)
    total = sum(survey.total(i) for i in range(len(rows.sources)))

    def build(out: Path) -> None:
        with progress.task("tokenizing", total) as task:
            build_example = ExampleBuilder(objective, renderer, max_length, chunk=chunk)
            writer = _Writer(out, rows, survey, build_example, new_tokens)
            for row in rows.positioned():
                writer.add(row)
                task.advance()
            writer.close()
            (out / CONTENT).write_text(_content(out), encoding="utf-8")
            refuse_if_nothing_is_supervised(writer.sides(), rows)
            _check_weights(writer.counts, writer.rows_per_pass)

    titles = [s.source.title for s in rows.sources]
    return _open_entry(cache.get_or_build("tokens", key, build), titles, survey, identity)


def rows_fingerprint(
    rows: Rows,
    survey: Survey,
    objective: SelectedComponent,
    renderer: Renderer,
    max_length: int,
    *,
    chunk: bool = False,
) -> str:
    """`Tokens.identity` of these rows, without tokenizing them."""
    return fingerprint(_inputs(rows, survey, objective, renderer, max_length, chunk=chunk))


def _inputs(
    rows: Rows, survey: Survey, objective: SelectedComponent, renderer: Renderer, max_length: int, *, chunk: bool
) -> dict[str, Any]:
    """Everything that determines the tokens, except versions of libraries."""
    return {
        "rows": rows.identity(),
        "border": survey.threshold,
        "objective": [objective.component.full_name, objective.component.version, options_dict(objective.options)],
        "tokenizer": tokenizer_identity(renderer.tokenizer),
        "render": asdict(renderer.options),
        "max_length": max_length,
        **({"long_text": "chunk"} if chunk else {}),  # runs of versions without chunks keep their identity
        **({"fields": rows.needs.fields} if rows.needs.fields else {}),
    }


def _open_entry(directory: Path, titles: Sequence[str], survey: Survey, identity: str) -> Tokens:
    """The tokens of a cache entry, with the current titles and unread columns, which do not affect the content."""
    saved = load_json(directory / "counts.json")
    counts = [
        SourceCounts(**{**c, "title": title, "not_read": dict(unread), "shares": Shares(**c["shares"])})
        for c, title, unread in zip(saved, titles, survey.unread, strict=True)
    ]
    held_out = [Examples(directory / f"held_out-{i}.arrow") for i in range(len(titles))]
    known = directory / CONTENT
    content = known.read_text(encoding="utf-8") if known.exists() else _content(directory)  # of an earlier version
    train = Examples(directory / "train.arrow")
    rows = [_examples_of_rows(directory, i) or [1] * len(e) for i, e in enumerate(held_out)]
    return Tokens(train=train, held_out=held_out, held_out_rows=rows, counts=counts, identity=identity, content=content)


def _content(directory: Path) -> str:
    """A hash of the Arrow files of an entry."""
    return fingerprint([[f.name, file_sha256(f)] for f in sorted(directory.glob("*.arrow"))])


def _examples_of_rows(directory: Path, source: int) -> list[int]:
    """The number of examples of each held-out row of a source; empty if each row has one."""
    file = directory / f"held_out-{source}.rows"
    return array("i", file.read_bytes()).tolist() if file.exists() else []


def tokenizer_identity(tokenizer: Any) -> str:
    """A hash of a tokenizer's vocabulary, rules, special tokens and template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    about = json.dumps([rules, tokenizer.chat_template, tokenizer.eos_token, tokenizer.special_tokens_map], default=str)
    return hashlib.sha256(about.encode()).hexdigest()[:32]


def _check_weights(counts: Sequence[Mapping[str, Any]], rows_per_pass: int) -> None:
    """Raises DataError if weights below 1 leave no row to train on."""
    rows = sum(c["train"] for c in counts)
    if rows and not rows_per_pass:
        raise DataError(
            f"the weights of the sources leave none of the {rows} training rows", hint="increase a weight in data.path"
        )


class ExampleBuilder:
    """Builds examples from rows with an objective; the notes on each row are in the renderer's `counts`."""

    def __init__(self, objective: SelectedComponent, renderer: Renderer, max_length: int, *, chunk: bool) -> None:
        """With `chunk`, raw text longer than `max_length` becomes several examples."""
        self.selected, self.renderer, self.max_length, self.chunk = objective, renderer, max_length, chunk
        self.objective: Objective = objective.create()
        self.names: list[str] | None = None
        self.shares = Shares()
        """The answers and tool calls of the last row."""

    def __call__(self, row: PositionedRow) -> list[dict[str, list[int]]]:
        """The examples of a row, or none if it is left out.

        A long text has several, and so has a conversation whose turns the template rewrites: each of these turns is in
        an example that ends there or at a later one of them, in the prompt that leads to it.

        Raises DataError with the row's location if the template or the objective refuses it, ModelError if one of its
        tokens has no embedding, and PluginError if `prepare` fails or returns a value that its contract does not allow.
        """
        self.renderer.counts.clear()
        self.renderer.turns.clear()
        self.shares = Shares()
        if row.left_out:
            return []
        try:
            with attributed_to(self.selected.component, where=row.where):
                pieces = self.renderer.chunks(row.conversation, self.max_length) if self.chunk else []
                if pieces:
                    self.renderer.note(CHUNKED)
                chunked: list[api.Renderer] = [ChunkRenderer(self.renderer, row.conversation, p) for p in pieces]
                views = chunked or [self.renderer]
                made = [self._prepared(row.conversation, view) for view in views]
                made += self._own_examples(row.conversation)
                found = [self._checked(example) for example in made if example is not None]
            for ids in _token_ids(found):
                self.renderer.check_ids(ids, row.where)
        except DataError as e:
            raise DataError(f"{row.where}: {e.message}", hint=e.hint) from e
        for note in self.renderer.counts:  # users see the number of rows: both answers of a pair are one
            self.renderer.counts[note] = 1
        self.shares = self._shares(row.conversation, left_out=not found)
        return found

    def _shares(self, conversation: Conversation, *, left_out: bool) -> Shares:
        """The answers and tool calls of a row; those of a rejected answer only if the objective encoded it."""
        trained: dict[bool, list[int]] = {}
        for turns in self.renderer.turns:
            of_rejected = conversation.rejected is not None and turns.conversation.messages == conversation.rejected
            trained.setdefault(of_rejected, []).extend([] if left_out else turns.trained)
        found = shares(conversation, trained.get(False, ()))
        if True in trained:
            found.add(shares(conversation.rejected_conversation(), trained[True]))
        return found

    def _prepared(self, conversation: Conversation, renderer: api.Renderer) -> Any:
        """What the objective makes of a conversation. Raises DataError if it says that the row has a fault."""
        try:
            return self.objective.prepare(conversation, renderer, self.max_length)
        except ValueError as e:
            if is_resource_error(e):
                raise
            reason = first_line(e) if str(e).strip() else f"{self.selected.component.title} rejects the row"
            raise DataError(reason, hint=getattr(e, "hint", None) or "fix the row, or remove it") from e

    def _own_examples(self, conversation: Conversation) -> list[Any]:
        """The examples of the turns that the template rewrites; none for a pair of answers, which has one end.

        The notes of the renderer count the row once.
        """
        turns = self._turns_of(conversation)
        if turns is None or not turns.rewritten or conversation.rejected is not None:
            return []
        counts, made, left = self.renderer.counts, [], turns.rewritten
        before = dict(counts)
        counts.clear()
        while left:
            ending = self.renderer.ending_at(conversation, left[-1], left)
            made.append(self._prepared(ending, self.renderer))
            found = self._turns_of(ending)
            left = [i for i in (found.rewritten if found is not None else ()) if i < left[-1]]
        notes = dict.fromkeys(counts, 1) | before | {OWN_EXAMPLE: 1}
        counts.clear()
        counts.update({note: times for note, times in notes.items() if note != REWRITTEN})
        return made

    def _turns_of(self, conversation: Conversation) -> Turns | None:
        """The turns of a conversation that the objective encoded for this row."""
        return next((t for t in reversed(self.renderer.turns) if t.conversation == conversation), None)

    def _checked(self, example: Any) -> dict[str, list[int]]:
        """The example as plain lists. Raises TypeError or ValueError if it is invalid or its keys differ."""
        if not isinstance(example, Mapping):
            raise TypeError(f"prepare() returned a {type(example).__name__}; expected a mapping or None")
        self.names = self.names or list(example)
        if sorted(example) != sorted(self.names):
            raise ValueError(f"prepare() returned the keys {list(example)}, but {self.names} for another row")
        found = {}
        for name in self.names:
            try:
                found[name] = array("i", example[name]).tolist()  # also converts tensors and NumPy arrays
            except (TypeError, ValueError, OverflowError) as e:
                raise TypeError(f"prepare() returned {name!r}, which is not a list of integers: {e}") from e
        if not any(found.values()):
            raise ValueError("prepare() returned an empty example; return None to skip a row")
        return found


class _Writer:
    """Writes rows to Arrow files: one for the training rows, and one for the held-out rows of each source."""

    def __init__(
        self, out: Path, rows: Rows, survey: Survey, prepare: ExampleBuilder, new_tokens: Sequence[NewToken]
    ) -> None:
        self.out, self.rows, self.survey, self.prepare = out, rows, survey, prepare
        self.new_tokens = new_tokens
        self.rows_of_tokens = [no_rows_yet(new_tokens) for _ in rows.sources]
        self.train, self.rows_per_pass = _ArrowFile(out / "train.arrow"), 0
        self.held_out = [_ArrowFile(out / f"held_out-{i}.arrow") for i in range(len(rows.sources))]
        self.examples_of_rows = [array("i") for _ in rows.sources]
        """The number of examples of each held-out row."""
        self.counts = [_no_rows(overlap) for overlap in survey.overlap]
        self.left_out: dict[bool, LeftOut] = {}
        """For training rows (False) and for held-out rows (True): a row that was left out, with the reason."""
        self.shares = [Shares() for _ in self.counts]

    def add(self, row: PositionedRow) -> None:
        counts = self.counts[row.source]
        examples = self.prepare(row)
        notes = self.prepare.renderer.counts
        self.shares[row.source].add(self.prepare.shares)
        for note, times in notes.items():
            counts["notes"][note] = counts["notes"].get(note, 0) + times
        if CHUNKED in notes:
            counts["chunks"] += len(examples)
        if row.missing:
            counts["missing"][row.missing] = counts["missing"].get(row.missing, 0) + 1
        elif row.undesirable:
            counts["undesirable"] += 1
        elif not examples:
            counts["empty"] += 1
            self._explain(row, notes)
        elif self.survey.holds_out(row):
            counts["held_out"] += 1
            self.examples_of_rows[row.source].append(len(examples))
            for example in examples:
                self.held_out[row.source].add(example)
        else:
            counts["train"] += 1
            add_row(self.rows_of_tokens[row.source], self.new_tokens, _token_ids(examples))
            times = copies(self.rows.sources[row.source].source.config.weight, row.position)
            self.rows_per_pass += times
            for example in examples * times:
                self.train.add(example)

    def _explain(self, row: PositionedRow, notes: Mapping[str, int]) -> None:
        """Keep the reason of the first row that is left out, or of the first that is left out for its length."""
        side = self.survey.holds_out(row)
        before = self.left_out.get(side)
        if before is None or (before.enough is None and "cut" in notes):
            found = reason(row, sorted(notes), self.prepare.renderer, self.prepare.max_length)
            self.left_out[side] = more_useful(before, found)

    def sides(self) -> list[Side]:
        """Both sides of the split: their rows, those that are left, and why one was left out."""
        left = {name: sum(c[name] for c in self.counts) for name in ("train", "held_out")}
        return [
            Side("training", sum(self.survey.train), left["train"], self.left_out.get(False)),
            Side("held-out", sum(self.survey.held_out), left["held_out"], self.left_out.get(True)),
        ]

    def close(self) -> None:
        for file in (self.train, *self.held_out):
            file.close()
        for i, numbers in enumerate(self.examples_of_rows):
            if set(numbers) - {1}:
                (self.out / f"held_out-{i}.rows").write_bytes(numbers.tobytes())
        parts = zip(self.counts, self.shares, self.rows_of_tokens, strict=True)
        saved = [{**c, "shares": asdict(s), "new_tokens": dict(t)} for c, s, t in parts]
        (self.out / "counts.json").write_text(json.dumps(saved), encoding="utf-8")


def _token_ids(examples: Iterable[Mapping[str, list[int]]]) -> Iterator[list[int]]:
    """The token ids of examples, among the lists of integers that they have."""
    return (ids for example in examples for name, ids in example.items() if name.endswith("input_ids"))


def _no_rows(in_validation: int) -> dict[str, Any]:
    """The counts of a source before its rows are added; see `SourceCounts`."""
    zero = dict.fromkeys(("train", "held_out", "empty", "undesirable", "chunks"), 0)
    return {**zero, "notes": {}, "missing": {}, "in_validation": in_validation}


def copies(weight: float, position: float) -> int:
    """How often a row is used per pass: the weight, rounded up or down by the row's position."""
    whole = math.floor(weight)
    return whole + (math.modf(position * 1e6)[0] < weight - whole)  # not the digits that decide the split
