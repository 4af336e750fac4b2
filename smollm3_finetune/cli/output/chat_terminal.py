"""The output of `smollm3 chat` on a terminal: Markdown, drawn live by rich."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from smollm3_finetune.cli.output.chat import SAME, Answering, HeldBack, cut_note, problems
from smollm3_finetune.cli.output.markdown import EVERY, WAITING, Lines, MarkdownStream, console, whole
from smollm3_finetune.data.shown_tokens import visible
from smollm3_finetune.errors import SmolLM3Error

if TYPE_CHECKING:
    from smollm3_finetune.inference.chat import Reply, Side

NARROW = 80
"""Columns below which two answers are shown one after the other."""


class Terminal:
    """A chat on a terminal."""

    def __init__(self, out: TextIO, titles: Mapping[Side, str], limit: int | None) -> None:
        self.console = console(out)
        self.titles = titles
        self.limit = limit

    def say(self, text: str) -> None:
        self.console.print(Text(visible(text), style="dim"))

    def error(self, error: SmolLM3Error) -> None:
        for one in problems(error):
            self.console.print(Text.assemble(("error", "bold red"), f": {visible(one.message)}"))
            if one.hint:
                self.console.print(Text.assemble(("  hint", "cyan"), f": {visible(one.hint)}"))

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        grid = Table.grid(padding=(0, 2))
        for term, text in rows:
            grid.add_row(Text(term, style="bold", no_wrap=True), Text(text))
        self.console.print(Padding(grid, (0, 0, 0, 2)))

    def reasoning(self, text: str) -> None:
        self.console.print(Text(visible(text), style="dim"))

    @contextlib.contextmanager
    def answering(self, prompt: str, sides: Sequence[Side]) -> Iterator[Answering]:
        with contextlib.ExitStack() as stack:
            if len(sides) > 1 and self.console.width >= NARROW:
                yield stack.enter_context(Columns(self, sides))
            else:
                yield stack.enter_context(Stacked(self, sides))
        self.console.print()

    def note(self, reply: Reply) -> RenderableType | None:
        """Why an answer is not whole, or that it is empty."""
        note = cut_note(reply, self.limit)
        if note is None and not reply.answer.text:
            note = "empty answer"
        return Text(f"[{note}]", style="dim italic") if note else None


class Stacked:
    """Answers one after the other; with two sides, each under a title, and the second one only if it differs."""

    def __init__(self, screen: Terminal, sides: Sequence[Side]) -> None:
        self.screen = screen
        self.titled = len(sides) > 1
        self.stream: MarkdownStream | None = None
        self.first: str | None = None
        self.held = HeldBack("")

    def __enter__(self) -> Stacked:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def write(self, side: Side, text: str) -> None:
        if self.first is not None:
            text = self.held.add(text)
        if text:
            self._begin(side).write(text)

    def done(self, reply: Reply) -> None:
        screen, text = self.screen, reply.answer.text
        if self.first is not None and text == self.first:
            screen.console.print(self._title(reply.side, f"{screen.titles[reply.side]}: {SAME}"))
        else:
            if self.first is not None and not self.held.differs:
                self._begin(reply.side).write(text)
            self._begin(reply.side)
            self._end()
            if (note := screen.note(reply)) is not None:
                screen.console.print(note)
        self.first, self.held = text, HeldBack(text)

    def _begin(self, side: Side) -> MarkdownStream:
        if self.stream is None:
            if self.titled:
                self.screen.console.print(self._title(side, self.screen.titles[side]))
            self.stream = MarkdownStream(self.screen.console).__enter__()
        return self.stream

    def _end(self) -> None:
        if self.stream is not None:
            self.stream.__exit__(None, None, None)
            self.stream = None

    def _title(self, side: Side, text: str) -> RenderableType:
        return Rule(Text(text, style="bold"), align="left", style="dim", characters="─")


class Columns:
    """Two answers side by side. While they are generated, the last lines that fit are shown."""

    def __init__(self, screen: Terminal, sides: Sequence[Side]) -> None:
        self.screen = screen
        self.sides = sides
        self.texts: dict[Side, str] = {}
        self.replies: dict[Side, Reply] = {}
        self.drawn = 0.0
        self.live = Live(
            Text(WAITING, style="dim"), console=screen.console, auto_refresh=False, transient=True,
            redirect_stdout=False, redirect_stderr=False, vertical_overflow="visible",
        )  # fmt: skip

    def __enter__(self) -> Columns:
        self.live.start(refresh=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.update(Text(""), refresh=False)
        if self.texts or self.replies:
            self.screen.console.print(self._final())
        self.live.stop()

    def write(self, side: Side, text: str) -> None:
        self.texts[side] = self.texts.get(side, "") + text
        now = time.monotonic()
        if now - self.drawn >= EVERY:
            self.drawn = now
            height = max(self.screen.console.size.height - 3, 1)
            self.live.update(self._table(height), refresh=True)

    def done(self, reply: Reply) -> None:
        self.replies[reply.side] = reply
        self.texts[reply.side] = reply.answer.text

    def _final(self) -> RenderableType:
        first, second = (self.texts.get(side) for side in self.sides)
        if first is None or first != second:
            return self._table(None)
        title = Text(f"{' and '.join(self.screen.titles[s] for s in self.sides)}: {SAME}", style="bold")
        return Group(title, self._cell(self.sides[0], None))

    def _table(self, most: int | None) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=True)
        for part in ("left", "between", "right"):
            grid.add_column(ratio=None if part == "between" else 1, width=1 if part == "between" else None)
        left, right = self.sides
        cells = [self._cell(side, most) for side in self.sides]
        width = (self.screen.console.width - 5) // 2
        options = self.screen.console.options.update(width=width)
        height = max(len(self.screen.console.render_lines(cell, options)) for cell in cells)
        line = "|" if options.ascii_only else "│"
        bar = Text("\n".join(line * height), style="dim")
        grid.add_row(Text(self.screen.titles[left], style="bold"), Text(line, style="dim"),
                     Text(self.screen.titles[right], style="bold"))  # fmt: skip
        grid.add_row(cells[0], bar, cells[1])
        return grid

    def _cell(self, side: Side, most: int | None) -> RenderableType:
        text, reply = self.texts.get(side), self.replies.get(side)
        if text is None:
            return Text(WAITING, style="dim")
        note = self.screen.note(reply) if reply is not None else None
        parts: list[RenderableType] = [whole(text)] if text else []
        return Lines(Group(*parts, *([note] if note is not None else [])), most)
