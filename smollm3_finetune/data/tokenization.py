"""Rows as tokens: written once into the cache as Arrow files, then read from there through memory maps.

The cache entry is addressed by everything that decides the tokens: the rows' contents, how they are split, formatted
and rendered, the tokenizer, the objective and the versions of what made them. Memory does not grow with the rows.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Objective, Progress, options_dict
from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.components.requirements import installed_version
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.examples import Examples, _ArrowFile
from smollm3_finetune.data.rows import PositionedRow, Rows, Survey
from smollm3_finetune.errors import DataError
from smollm3_finetune.version import __version__

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What became of the rows of one source."""

    title: str
    train: int
    """Rows to train on, each counted once whatever its weight."""
    held_out: int
    empty: int
    """Rows left out because nothing in them is learned within the longest length."""
    notes: Mapping[str, int]
    """What was changed on the way, and in how many rows: `cut`, `trace stripped`, …"""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Everything to train on and to measure with."""

    train: Examples
    held_out: list[Examples]
    """One for each source."""
    counts: list[SourceCounts]
    identity: str
    """Of the rows and of all that turned them into tokens, but for the versions of what did."""


def tokenize(
    rows: Rows,
    survey: Survey,
    objective: SelectedComponent,
    renderer: Renderer,
    max_length: int,
    cache: Cache,
    progress: Progress,
) -> Tokens:
    """The rows as tokens, from the cache where they are there.

    Raises DataError, with file and line where it is a row's fault, and where nothing is left to train on.
    """
    decides = {
        "rows": rows.identity(),
        "border": survey.threshold,
        "objective": [objective.component.full_name, objective.component.version, options_dict(objective.options)],
        "tokenizer": tokenizer_identity(renderer.tokenizer),
        "render": asdict(renderer.options),
        "max_length": max_length,
    }
    key = {
        **decides,
        "today": None if renderer.options.date else datetime.date.today().isoformat(),
        "versions": [__version__, installed_version("transformers")],
    }
    identity = fingerprint(decides)
    total = sum(survey.train) + sum(survey.held_out)

    def build(out: Path) -> None:
        with progress.task("tokenizing", total) as task:
            writer = _Writer(out, rows, survey.threshold, objective, renderer, max_length)
            for row in rows.positioned():
                writer.add(row)
                task.advance()
            writer.close()
            _check_something_left(writer.counts, survey, max_length)
            _check_weights(writer.counts, writer.in_a_pass)

    titles = [s.source.title for s in rows.sources]
    entry = cache.get_or_build("tokens", key, build)
    try:
        return _opened(entry, titles, identity)
    except (OSError, ValueError, TypeError):  # a file that was cut or changed; pyarrow's errors are among these
        cache.drop("tokens", key)
    return _opened(cache.get_or_build("tokens", key, build), titles, identity)


def _opened(directory: Path, titles: Sequence[str], identity: str) -> Tokens:
    """The tokens of a cache entry, whose sources are called `titles` now: their names do not decide the content.

    Raises OSError, ValueError or TypeError where a file of it is damaged.
    """
    saved = json.loads((directory / "counts.json").read_text(encoding="utf-8"))
    counts = [SourceCounts(**{**c, "title": title}) for c, title in zip(saved, titles, strict=True)]
    held_out = [Examples(directory / f"held_out-{i}.arrow") for i in range(len(titles))]
    train = Examples(directory / "train.arrow")
    for examples in (train, *held_out):
        len(examples)  # reads the end of the file, which one that was cut does not have
    return Tokens(train=train, held_out=held_out, counts=counts, identity=identity)


def tokenizer_identity(tokenizer: Any) -> str:
    """A hash of a tokenizer's vocabulary, rules, special tokens and template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    about = json.dumps([rules, tokenizer.chat_template, tokenizer.eos_token, tokenizer.special_tokens_map], default=str)
    return hashlib.sha256(about.encode()).hexdigest()[:32]


def _check_something_left(counts: Sequence[Mapping[str, Any]], survey: Survey, max_length: int) -> None:
    """Raises DataError where a side that has rows has none left that teaches anything."""
    sides = {
        "training": (sum(survey.train), sum(c["train"] for c in counts)),
        "held-out": (sum(survey.held_out), sum(c["held_out"] for c in counts)),
    }
    for label, (before, left) in sides.items():
        if before and not left:
            raise DataError(
                f"none of the {before} {label} rows has a token to learn within data.max_length={max_length} tokens",
                hint=f"--max-length {max_length * 2}",
            )


def _check_weights(counts: Sequence[Mapping[str, Any]], in_a_pass: int) -> None:
    """Raises DataError where weights below 1 leave no row to train on."""
    rows = sum(c["train"] for c in counts)
    if rows and not in_a_pass:
        raise DataError(f"the weights of the sources leave none of {rows} training rows", hint="a larger weight")


class ExampleBuilder:
    """An objective at work: rows become examples, with the notes on each in the renderer's `counts`."""

    def __init__(self, objective: SelectedComponent, renderer: Renderer, max_length: int) -> None:
        self.objective, self.renderer, self.max_length = objective, renderer, max_length
        self.made: Objective = objective.create()
        self.names: list[str] | None = None

    def __call__(self, row: PositionedRow) -> Mapping[str, Sequence[int]] | None:
        """Raises DataError with the row's place where the template refuses it, PluginError where `prepare` fails.

        It fails, too, where it gives what the contract does not allow.
        """
        self.renderer.counts.clear()
        try:
            with attributed_to(self.objective.component, where=row.where):
                example = self.made.prepare(row.conversation, self.renderer, self.max_length)
                return None if example is None else self._checked(example)
        except DataError as e:
            raise DataError(f"{row.where}: {e.message}", hint=e.hint) from e

    def _checked(self, example: Any) -> dict[str, list[int]]:
        """The example as plain lists; TypeError or ValueError for what is no example, or one unlike the first."""
        if not isinstance(example, Mapping):
            raise TypeError(f"prepare() gave a {type(example).__name__}, and is to give a mapping or None")
        self.names = self.names or list(example)
        if sorted(example) != sorted(self.names):
            raise ValueError(f"prepare() gave {list(example)}, and {self.names} for another row")
        found = {}
        for name in self.names:
            try:
                found[name] = array("i", example[name]).tolist()  # tensors and NumPy's arrays are lists then, too
            except (TypeError, ValueError, OverflowError) as e:
                raise TypeError(f"prepare() gave {name!r} that is no list of integers: {e}") from e
        if not any(found.values()):
            raise ValueError("prepare() gave no token, and is to give None for a row that teaches nothing")
        return found


class _Writer:
    """Sorts rows into Arrow files: one to train on, one of held-out rows for each source."""

    def __init__(
        self, out: Path, rows: Rows, threshold: float, objective: SelectedComponent, renderer: Renderer, max_length: int
    ) -> None:
        self.out, self.rows, self.threshold = out, rows, threshold
        self.prepare, self.renderer = ExampleBuilder(objective, renderer, max_length), renderer
        self.train, self.in_a_pass = _ArrowFile(out / "train.arrow"), 0
        self.held_out = [_ArrowFile(out / f"held_out-{i}.arrow") for i in range(len(rows.sources))]
        self.counts: list[dict[str, Any]] = [{"train": 0, "held_out": 0, "empty": 0, "notes": {}} for _ in rows.sources]

    def add(self, row: PositionedRow) -> None:
        counts = self.counts[row.source]
        example = self.prepare(row)
        for note, times in self.renderer.counts.items():
            counts["notes"][note] = counts["notes"].get(note, 0) + times
        held = row.position < self.threshold
        if example is None:
            counts["empty"] += 1
        elif held:
            counts["held_out"] += 1
            self.held_out[row.source].add(example)
        else:
            counts["train"] += 1
            times = copies(self.rows.sources[row.source].source.config.weight, row.position)
            self.in_a_pass += times
            for _ in range(times):
                self.train.add(example)

    def close(self) -> None:
        for file in (self.train, *self.held_out):
            file.close()
        (self.out / "counts.json").write_text(json.dumps(self.counts), encoding="utf-8")


def copies(weight: float, position: float) -> int:
    """How often a row is seen in a pass: the weight, rounded up for a share of rows chosen by their position."""
    whole = math.floor(weight)
    return whole + (math.modf(position * 1e6)[0] < weight - whole)  # other digits than those that split
