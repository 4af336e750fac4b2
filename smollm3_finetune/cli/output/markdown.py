"""Markdown of an answer on a terminal, drawn while it is generated: finished blocks once, the last block live."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.style import Style
from rich.syntax import ANSISyntaxTheme
from rich.text import Text
from rich.theme import Theme

from smollm3_finetune.data.shown_tokens import visible

STYLES = Theme(
    {
        "markdown.code": "bold cyan",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold underline",
        "markdown.h3": "bold",
        "markdown.h4": "bold italic",
        "markdown.block_quote": "italic",
        "markdown.item.bullet": "bold",
        "markdown.item.number": "bold",
        "markdown.link": "underline",
        "markdown.link_url": "underline",
        "markdown.table.header": "bold",
        "markdown.table.border": "dim",
    }
)
"""Readable on a light and on a dark background: no background colors, and a shape for what a color marks."""
EVERY = 1 / 12
"""Seconds between two drawings."""
WAITING = "..."
"""Shown before the first token."""
THINK, THOUGHT = "<think>", "</think>"
SHOWN_REASONING = 4
"""Lines of the reasoning that are shown while it is generated."""


def console(file: Any, width: int | None = None) -> Console:
    """A console of rich with the styles of this module."""
    return Console(file=file, highlight=False, theme=STYLES, width=width)


class LeftHeading(Heading):
    """A heading at the left of the terminal, in the style of its level."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class Answer(Markdown):
    """Markdown as answers are shown."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": LeftHeading}


class Lines:
    """The lines of a renderable, if `stripped` without empty ones around them; with `most`, only the last ones."""

    def __init__(self, renderable: RenderableType, most: int | None = None, *, stripped: bool = True) -> None:
        self.renderable = renderable
        self.most = most
        self.stripped = stripped

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.renderable, options, pad=False)
        if self.stripped:
            used = [i for i, line in enumerate(lines) if any(s.text.strip() and not s.control for s in line)]
            lines = lines[used[0] : used[-1] + 1] if used else []
        for line in lines if self.most is None else lines[-self.most :]:
            yield from without_end_spaces(line)
            yield Segment.line()


def without_end_spaces(line: list[Segment]) -> list[Segment]:
    """A line without the spaces that fill it up, which a user would copy."""
    kept = list(line)
    while kept and not kept[-1].control and not kept[-1].text.rstrip(" "):
        kept.pop()
    if kept and not kept[-1].control:
        kept[-1] = Segment(kept[-1].text.rstrip(" "), kept[-1].style)
    return kept


def markdown(text: str) -> RenderableType:
    """Markdown with code in the terminal's own colors."""
    return Lines(Answer(visible(text), code_theme=_code_theme(), hyperlinks=False))


def _code_theme() -> Any:
    from pygments.token import Comment, Generic, Keyword, Name, Number, String, Token

    return ANSISyntaxTheme(
        {
            Token: Style(),
            Comment: Style(dim=True, italic=True),
            Keyword: Style(bold=True),
            Name.Function: Style(color="cyan"),
            Name.Class: Style(color="cyan", bold=True),
            String: Style(color="green"),
            Number: Style(color="magenta"),
            Generic.Heading: Style(bold=True),
        }
    )


def split_reasoning(text: str) -> tuple[str | None, str, bool]:
    """The reasoning at the start of an answer (None if there is none), the rest, and whether the reasoning has ended.

    A text that may become the opening tag counts as reasoning that has not begun.
    """
    start = text.lstrip()
    if not start.startswith(THINK):
        begins = THINK.startswith(start) and bool(start)
        return ("", "", False) if begins else (None, text, True)
    inner, ended, rest = start[len(THINK) :].partition(THOUGHT)
    return inner.strip(), rest.lstrip("\n"), bool(ended)


def folded(reasoning: str) -> Text:
    """The line in place of reasoning that has ended."""
    count = len(reasoning.split())
    return Text(f"[reasoning: {count} word{'s' * (count != 1)}; /reasoning shows it]", style="dim italic")


def open_reasoning(reasoning: str) -> RenderableType:
    """The end of reasoning that is being generated."""
    title = Text("[reasoning ...]", style="dim italic")
    return Group(title, Lines(Text(visible(reasoning), style="dim"), SHOWN_REASONING)) if reasoning else title


def whole(text: str) -> RenderableType:
    """An answer, finished or not: its reasoning in short, and its Markdown."""
    reasoning, rest, ended = split_reasoning(text)
    if reasoning and not ended:
        return open_reasoning(reasoning)
    parts: list[RenderableType] = [folded(reasoning)] if reasoning else []
    parts += [markdown(rest)] if rest.strip() else []
    return Group(*parts)


def blocks(text: str) -> list[str]:
    """The top-level blocks of a Markdown text; joined, they are the text. While it is written, the last may change."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt().enable("strikethrough").enable("table").parse(text)
    starts = [t.map[0] for t in tokens if t.level == 0 and t.map and t.nesting >= 0][1:]
    lines = text.split("\n")
    ends = [*starts, len(lines)]
    pieces = ["\n".join(lines[a:b]) for a, b in zip([0, *starts], ends, strict=True)]
    return [f"{piece}\n" for piece in pieces[:-1]] + pieces[-1:]


class MarkdownStream:
    """Draws an answer while it is generated. Use it as a context, at whose end the whole answer is drawn."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.text = ""
        self.done = 0
        """Characters after the reasoning that are printed finally."""
        self.printed = False
        self.drawn = 0.0
        self.live = Live(
            Text(WAITING, style="dim"), console=console, auto_refresh=False, transient=True, redirect_stdout=False,
            redirect_stderr=False, vertical_overflow="visible",
        )  # fmt: skip

    def __enter__(self) -> MarkdownStream:
        self.live.start(refresh=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._draw(final=True)
        self.live.stop()

    def write(self, text: str) -> None:
        """Add a piece of text."""
        self.text += text
        now = time.monotonic()
        if now - self.drawn >= EVERY:
            self.drawn = now
            self._draw()

    def _draw(self, *, final: bool = False) -> None:
        """Print what has become final above the live part, and draw the live part, in one write."""
        reasoning, body, ended = split_reasoning(self.text)
        if reasoning is not None and not ended and not final:
            self._show([], open_reasoning(reasoning))
            return
        fold = [folded(reasoning)] if reasoning and not self.printed else []
        *finished, last = blocks(body[self.done :])
        if final:
            finished, last = [*finished, last], ""
        self.done += sum(map(len, finished))
        drawn = [markdown(block) for block in finished if block.strip()]
        self._show([*fold, *drawn], markdown(last) if last.strip() else Text("" if final else WAITING, style="dim"))

    def _show(self, final: Sequence[RenderableType], live: RenderableType) -> None:
        printed: list[RenderableType] = []
        for one in final:
            printed += [Text(""), one] if self.printed else [one]
            self.printed = True
        gap = [Text("")] if self.printed else []
        height = max(self.console.size.height - 2, 1)
        self.live.update(Lines(Group(*gap, live), height, stripped=False), refresh=not printed)
        if printed:
            self.console.print(Group(*printed))
