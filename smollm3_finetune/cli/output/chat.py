"""The output of `smollm3 chat`: drawn on a terminal, or as plain text or JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import click

from smollm3_finetune.errors import Problems, SmolLM3Error

if TYPE_CHECKING:
    from smollm3_finetune.inference.chat import Reply, Side

SAME = "same answer"
CUT = {"cut": "cut: what was generated is kept", "length": "cut at {} new tokens: --max-new-tokens"}


class Answering(Protocol):
    """Shows the answers of one turn."""

    def write(self, side: Side, text: str) -> None:
        """A new piece of an answer."""

    def done(self, reply: Reply) -> None:
        """An answer is complete."""


class Screen(Protocol):
    """Where a chat is shown."""

    def say(self, text: str) -> None:
        """A line about the chat."""

    def error(self, error: SmolLM3Error) -> None:
        """An error that does not end the chat."""

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Terms and their explanations."""

    def reasoning(self, text: str) -> None:
        """The reasoning of an answer, as a whole."""

    def answering(self, prompt: str, sides: Sequence[Side]) -> contextlib.AbstractContextManager[Answering]:
        """Show the answers to a prompt inside the context."""
        ...


def cut_note(reply: Reply, limit: int | None) -> str | None:
    """Why an answer is not whole, or None."""
    finish = reply.answer.finish
    if finish == "length" and limit is not None and reply.tokens >= limit:
        return f"cut at the end of the context of {limit} tokens"
    return CUT[finish].format(reply.room) if finish in CUT else None


class HeldBack:
    """Holds an answer back while it may still equal another one."""

    def __init__(self, other: str) -> None:
        self.other = other
        self.text = ""
        self.differs = False

    def add(self, text: str) -> str:
        """What can be shown now."""
        self.text += text
        if self.differs:
            return text
        if self.other.startswith(self.text):
            return ""
        self.differs = True
        return self.text


class PlainAnswers:
    """Answers as the model writes them; with two sides, each after its title."""

    def __init__(self, out: TextIO, titles: Mapping[Side, str], sides: Sequence[Side], limit: int | None) -> None:
        self.out = out
        self.titles = titles if len(sides) > 1 else {}
        self.sides = sides
        self.limit = limit
        self.held = HeldBack("")
        self.held.differs = True
        self.begun: set[Side] = set()

    def write(self, side: Side, text: str) -> None:
        shown = self.held.add(text)
        if shown:
            self._begin(side)
            self._write(shown)

    def done(self, reply: Reply) -> None:
        if not self.held.differs and reply.answer.text != self.held.other:  # a beginning of the other answer
            self._begin(reply.side)
            self._write(reply.answer.text)
        if self.held.differs or reply.answer.text != self.held.other:
            self._begin(reply.side)
            note = cut_note(reply, self.limit)
            self._write(f"\n[{note}]\n" if note else "\n")
        else:
            self._write(f"{self.titles[reply.side]}: {SAME}\n")
        self.held = HeldBack(reply.answer.text)

    def _begin(self, side: Side) -> None:
        if side not in self.begun and self.titles:
            self._write(f"{self.titles[side]}:\n")
        self.begun.add(side)

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


class JSONAnswers:
    """One line of JSON for each turn."""

    def __init__(self, out: TextIO, prompt: str) -> None:
        self.out = out
        self.prompt = prompt
        self.replies: list[Reply] = []

    def write(self, side: Side, text: str) -> None:
        pass

    def done(self, reply: Reply) -> None:
        self.replies.append(reply)

    def finish(self) -> None:
        first, *other = [r.answer for r in self.replies]
        row: dict[str, Any] = {"prompt": self.prompt, "answer": first.text, "finish_reason": first.finish}
        if other:
            base = other[0]
            row |= {"base": base.text, "base_finish_reason": base.finish, "same": base.text == first.text}
        self.out.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.out.flush()


class Plain:
    """Answers on standard output, everything else on standard error."""

    def __init__(self, out: TextIO, titles: Mapping[Side, str], limit: int | None, *, as_json: bool = False) -> None:
        self.out = out
        self.titles = titles
        self.limit = limit
        self.as_json = as_json

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def error(self, error: SmolLM3Error) -> None:
        for one in problems(error):
            self.say(f"error: {one.message}")
            if one.hint:
                self.say(f"  hint: {one.hint}")

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        width = max(len(term) for term, _ in rows)
        for term, text in rows:
            self.say(f"  {term:{width}}  {text}")

    def reasoning(self, text: str) -> None:
        self.say(text)

    @contextlib.contextmanager
    def answering(self, prompt: str, sides: Sequence[Side]) -> Iterator[Answering]:
        if not self.as_json:
            yield PlainAnswers(self.out, self.titles, sides, self.limit)
            return
        answers = JSONAnswers(self.out, prompt)
        yield answers
        answers.finish()


def problems(error: SmolLM3Error) -> Sequence[SmolLM3Error]:
    """The single errors of an error."""
    return error.problems if isinstance(error, Problems) else (error,)
