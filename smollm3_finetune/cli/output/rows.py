"""The output of `smollm3 data`: rows, tokens and counts, in color on a terminal, else with plain marks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.data.chat_template.undeclared import SEVERAL, undeclared_line
from smollm3_finetune.data.chunks import CHUNKED
from smollm3_finetune.data.columns import shown as unread
from smollm3_finetune.data.counts import counted
from smollm3_finetune.data.new_token_rows import rows_line, unused_line
from smollm3_finetune.data.prepared_row import Prepared, TokenSequence
from smollm3_finetune.data.shown_tokens import segments, token_text
from smollm3_finetune.data.stats import Quantiles, SourceStats, histogram
from smollm3_finetune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.data.preview import About

MARKS = (("«", "»"), ("⟦", "⟧"), ("⟪", "⟫"), ("⦃", "⦄"))
"""Marks around supervised text if there is no color: the first pair that no shown row contains."""
SUPERVISED, CONTEXT, WARNING, TITLE = "bold green", "dim", "yellow", "bold"
BAR = 40
"""Characters of the longest bar."""
COUNTED = (
    "rows", "train", "held_out", "empty", "undesirable", "rows_per_pass", "cut", "chunks", "tokens",
    "tokens_supervised", "tokens_cut",
)  # fmt: skip
SHOWN_CHUNKS = 3
"""How many chunks of a long text are shown."""

Part = str | tuple[str, str]
"""Text, or text and its style."""


class Page:
    """Standard output; with rich if it is a terminal with colors."""

    def __init__(self) -> None:
        from rich.console import Console

        console = Console(file=sys.stdout, highlight=False)
        self.console = console if console.is_terminal and console.color_system and not console.no_color else None
        self.marks = MARKS[0]

    def choose_marks(self, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Prepared]) -> None:
        text = "".join(part for row in rows for s in row.sequences for part, _ in segments(tokenizer, s))
        self.marks = next((pair for pair in MARKS if not set(pair) & set(text)), MARKS[-1])

    def line(self, *parts: Part) -> None:
        pairs = [(part, "") if isinstance(part, str) else part for part in parts]
        if self.console is None:
            click.echo("".join(text for text, _ in pairs))
        else:
            from rich.text import Text

            self.console.print(Text.assemble(*pairs), soft_wrap=True)

    def text(self, pieces: Iterable[tuple[str, bool]]) -> None:
        """A row's text, each line after a bar; supervised text in color or between marks."""
        lines: list[list[tuple[str, str]]] = [[]]
        for text, supervised in pieces:
            if supervised and self.console is None:
                text = f"{self.marks[0]}{text}{self.marks[1]}"
            first, *rest = text.split("\n")
            style = SUPERVISED if supervised else CONTEXT
            lines[-1].append((first, style))
            lines += [[(more, style)] for more in rest]
        if not any(text for text, _ in lines[-1]):  # templates end with a line break
            lines.pop()
        for line in lines:
            self.line("│ " if any(text for text, _ in line) else "│", *line)


def head(page: Page, about: About, *, legend: bool) -> None:
    """The settings that determine the tokens, and the legend for supervised text."""
    objective = about.objective.rpartition(":")[2]
    page.line(f"model {about.model}, objective {objective}, data.max_length={about.max_length} tokens")
    if about.warning is not None:
        page.line((f"warning: {about.warning}", WARNING))
    if legend and page.console is not None:
        page.line("legend: ", ("supervised", SUPERVISED), ", ", ("context, not trained on", CONTEXT))
    elif legend:
        page.line(f"legend: {page.marks[0]}supervised{page.marks[1]}, the rest is context and not trained on")


def show_row(page: Page, row: Prepared, tokenizer: PreTrainedTokenizerBase, max_length: int, *, tokens: bool) -> None:
    """A row: its place and its split, its text, and its tokens if requested."""
    if row.side == "left out":
        side: Part = (f"left out: {row.why}", WARNING)
    elif row.side == "train" and row.copies != 1:
        side = f"train, {row.copies} times in each pass" if row.copies else "train, skipped by its source's weight"
    else:
        side = row.side
    notes = ["" if n == "cut" else n for n in row.notes]
    if "cut" in row.notes:
        notes[row.notes.index("cut")] = f"cut from {row.length:,} tokens"
    if CHUNKED in row.notes:
        notes[row.notes.index(CHUNKED)] = f"{row.length:,} tokens in {row.chunks} chunks"
    page.line()
    page.line(
        (row.where, TITLE), f"  {row.tokens:,} tokens, {row.supervised:,} supervised, ", side,
        *[(f"; {note}", WARNING) for note in notes],
    )  # fmt: skip
    for sequence in row.sequences[: SHOWN_CHUNKS if row.chunks else None]:
        if sequence.name:
            page.line((f"{sequence.name}:", TITLE), _size(row, sequence))
        page.text(segments(tokenizer, sequence))
        if sequence.start + len(sequence.ids) == max_length and "cut" in row.notes:
            page.line((f"│ … the rest is cut at data.max_length={max_length}", WARNING))
        if tokens:
            show_tokens(page, sequence, tokenizer)
    if row.chunks and len(row.sequences) > SHOWN_CHUNKS:
        page.line((f"│ … and {len(row.sequences) - SHOWN_CHUNKS:,} more chunks", WARNING))


def _size(row: Prepared, sequence: TokenSequence) -> str:
    """The tokens of a prompt or of an answer; empty for other sequences."""
    if sequence.name not in row.parts:
        return ""
    supervised = f", {sum(sequence.supervised):,} supervised" if sequence.start else ""
    return f"  {counted(len(sequence.ids), 'token')}{supervised}"


def show_tokens(page: Page, sequence: TokenSequence, tokenizer: PreTrainedTokenizerBase) -> None:
    page.line(("  index      id  mask        token", TITLE))
    for index, (token, supervised) in enumerate(zip(sequence.ids, sequence.supervised, strict=True), sequence.start):
        mask, style = ("supervised", SUPERVISED) if supervised else ("context", CONTEXT)
        page.line((f"{index:>7} {token:>7}  {mask:<10}  {token_text(tokenizer, token)}", style))


def show_stats(page: Page, index: int, stats: SourceStats, *, total: int, max_length: int, bars: bool) -> None:
    """The counts of a source, and a histogram of its rows' lengths if requested."""
    formatter = stats.formatter.rpartition(":")[2]
    page.line()
    kind = ", data.validation" if stats.validation else ""
    page.line((f"source {index}: {stats.title}", TITLE), f"  (formatter {formatter}{kind})")
    if stats.rows < total:
        page.line(
            ("  sample    ", ""), (f"{stats.rows:,} of {total:,} rows, evenly spaced; the counts are of these", WARNING)
        )
    left_out = stats.empty + stats.undesirable + stats.missing.total()
    kept = f"{stats.train:,} training + {stats.held_out:,} held out + {left_out:,} left out"
    page.line(f"  rows      {stats.rows:,} = {kept}")
    if stats.weight != 1:
        page.line(f"  weight    {stats.weight:g}: {_rows(stats.rows_per_pass)} seen in each pass")
    if stats.undesirable:
        why = f"{_rows(stats.undesirable)} left out: their label is false, which this objective does not use"
        page.line("  labels    ", (why, WARNING))
    for n, (why, times) in enumerate(stats.missing.most_common()):
        page.line("  lacking   " if n == 0 else " " * 12, (f"{_rows(times)} left out: {why}", WARNING))
    for n, (where, why) in enumerate(stats.empty_rows):
        page.line("  left out  " if n == 0 else " " * 12, (f"{where}: {why}", WARNING))
    if stats.empty > len(stats.empty_rows):
        page.line((f"{' ' * 12}… and {stats.empty - len(stats.empty_rows):,} more", WARNING))
    if stats.cut:
        cut = f"{_rows(stats.cut)} to {max_length:,} tokens; {stats.tokens_cut:,} tokens removed"
        page.line("  truncated ", (cut, WARNING))
    if stats.chunks:
        split = (
            f"{_rows(stats.notes[CHUNKED])} of long text into {stats.chunks:,} chunks of at most {max_length:,} tokens"
        )
        page.line(f"  chunked   {split}")
    notes = {n: t for n, t in stats.notes.items() if n != CHUNKED and not n.startswith(SEVERAL)}
    for n, (note, times) in enumerate(sorted(notes.items())):
        page.line("  notes     " if n == 0 else " " * 12, (f"{note}: {_rows(times)}", WARNING))
    if stats.new_tokens:
        page.line(f"  new tokens {rows_line(stats.new_tokens)}")
        if (unused := unused_line(stats.new_tokens)) is not None:
            page.line("  unused    ", (unused, WARNING))
    if (several := undeclared_line(stats.notes, stats.declared)) is not None:
        page.line("  undeclared ", (several, WARNING))
    if stats.not_read:
        page.line("  not read  ", (unread(stats.not_read, total), WARNING))
    if missed := stats.shares.sentence():
        page.line("  turns     ", (f"{'warning: ' if stats.shares.many else ''}{missed}", WARNING))
    share = f" ({stats.tokens_supervised / stats.tokens:.1%})" if stats.tokens else ""
    page.line(f"  tokens    {stats.tokens:,} in the rows kept, {stats.tokens_supervised:,} supervised{share}")
    if stats.parts:
        medians = ", ".join(f"{name} {Quantiles(found).median():,.0f}" for name, found in stats.parts.items())
        page.line(f"  answers   {medians} tokens (medians)")
    if not stats.lengths:
        return
    q = Quantiles(stats.lengths)
    page.line(
        f"  length    {q.at(1):,} to {q.at(q.count):,} tokens before truncation; median {q.median():,.0f}, "
        f"mean {q.mean():,.1f}, 95th percentile {q.p95():,}"
    )
    page.line(f"  longest   {stats.longest_row}")
    if bars:
        show_bars(page, stats, max_length)


def show_bars(page: Page, stats: SourceStats, max_length: int) -> None:
    buckets = histogram(stats.lengths)
    most = max(bar.rows for bar in buckets)
    names = [f"{bar.low:,}–{bar.high:,}" if bar.high > bar.low else f"{bar.low:,}" for bar in buckets]
    wide = max(len("tokens"), *map(len, names))
    page.line()
    page.line((f"    {'tokens':>{wide}}  rows", TITLE))
    threshold = next((bar for bar in buckets if bar.high > max_length), None)
    for bar, name in zip(buckets, names, strict=True):
        blocks = "█" * max(round(BAR * bar.rows / most), 1) if bar.rows else ""
        fate = "truncated" if stats.cut else "chunked"
        cut: list[Part] = [(f"  rows longer than {max_length:,} are {fate}", WARNING)] if bar is threshold else []
        page.line(
            f"    {name:>{wide}}  ", (blocks, WARNING if bar.low > max_length else SUPERVISED), f" {bar.rows:,}", *cut
        )


def show_problem(page: Page, problem: DataError) -> None:
    """Why a run with these rows would be refused, and what to change."""
    page.line()
    hint = "" if problem.hint is None else f"; to train on all rows: {problem.hint}"
    page.line((f"note: {problem.message}{hint}", WARNING))


def _rows(count: int) -> str:
    return counted(count, "row")


def totals(stats: Sequence[SourceStats]) -> dict[str, Any]:
    missing = sum(s.missing.total() for s in stats)
    return {**{name: sum(getattr(s, name) for s in stats) for name in COUNTED}, "missing": missing}


def show_total(page: Page, total: dict[str, Any]) -> None:
    page.line()
    page.line(("all sources", TITLE))
    left_out = total["empty"] + total["undesirable"] + total["missing"]
    kept = f"{total['train']:,} training + {total['held_out']:,} held out + {left_out:,} left out"
    page.line(f"  rows      {total['rows']:,} = {kept}")
    page.line(f"  tokens    {total['tokens']:,} in the rows kept, {total['tokens_supervised']:,} supervised")
