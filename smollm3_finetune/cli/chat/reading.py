"""What a user types: from a terminal, with editing by readline, or from a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from smollm3_finetune.errors import DataError

PROMPT, CONTINUED = "> ", ". "
BLOCK = '"""'


class Reader:
    """Reads messages of one or several lines.

    A line that ends with a backslash continues. A block begins with a line that starts with three double quotes and
    ends with a line that ends with them.
    """

    def __init__(self, line: Callable[[str], str | None]) -> None:
        self.line = line
        """The next line without its end, given a prompt; None at the end of the input."""
        self.is_block = False
        """Whether the last message was a block, which is never a command."""

    def read(self) -> str | None:
        """The next message, or None at the end of the input."""
        self.is_block = False
        line = self.line(PROMPT)
        if line is None:
            return None
        if line.startswith(BLOCK):
            self.is_block = True
            return self._block(line.removeprefix(BLOCK))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1].removesuffix("\\")
            if (more := self.line(CONTINUED)) is None:
                break
            lines.append(more)
        return "\n".join(lines)

    def _block(self, first: str) -> str:
        lines: list[str] = []
        more: str | None = first
        while more is not None:
            if more.rstrip().endswith(BLOCK):
                lines.append(more.rstrip().removesuffix(BLOCK))
                break
            lines.append(more)
            more = self.line(CONTINUED)
        return "\n".join(lines).strip("\n")


def terminal_line(out: TextIO, commands: Sequence[str]) -> Callable[[str], str | None]:
    """Reads lines from a terminal; `out` is the terminal. With readline, the up key recalls lines of this chat."""
    with contextlib.suppress(ImportError):  # Windows
        import readline

        def complete(text: str, state: int) -> str | None:
            found = [c for c in commands if c.startswith(text)] if text.startswith("/") else []
            return found[state] if state < len(found) else None

        readline.set_completer(complete)
        readline.set_completer_delims(" \n")
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")

    def line(prompt: str) -> str | None:
        try:
            with contextlib.redirect_stdout(out):  # readline edits only on the real standard output
                return input(prompt)
        except EOFError:
            out.write("\n")
            return None
        except UnicodeDecodeError as e:
            raise DataError(f"the line is not UTF-8 text: {e.reason}", hint="type or paste it again") from e

    return line


def piped_line() -> Callable[[str], str | None]:
    """Reads lines from standard input, which is not a terminal."""
    number = 0

    def line(prompt: str) -> str | None:
        nonlocal number
        number += 1
        raw = sys.stdin.buffer.readline()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise DataError(f"line {number} of standard input is not UTF-8 text: {e.reason} at byte {e.start}") from e
        return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r") if raw else None

    return line
