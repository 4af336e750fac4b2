"""The rows of a JSON list, decoded one by one from a stream, each with the line on which it begins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

from smollm3_finetune.files.limits import JSON_SIZE, BeyondLimit, check_depth, shown_bytes, too_deep

BLOCK = 1 << 20
"""Characters that are read at a time, at least."""
CUT_SHORT = 32
"""An error this close to the end of the text that was read may be due to the missing rest."""


class JSONListError(ValueError):
    """Text that is not a JSON list of rows: the problem, and its line if a line is to blame."""

    def __init__(self, problem: str, line: int | None = None, hint: str | None = None) -> None:
        super().__init__(problem)
        self.line, self.hint = line, hint


class JSONListReader:
    """Reads `[row, row, …]`. Memory use depends on the longest row, not on the number of rows."""

    def __init__(self, stream: TextIO, limit: int | None = None) -> None:
        """`limit` is the longest row, in characters, that is read; None: no limit."""
        self.stream, self.limit = stream, limit
        self.text, self.at, self.ended = "", 0, False
        self.first_line, self.first_column = 1, 1
        """The place of `text[0]` in the file."""
        self.line, self.counted = 1, 0
        """The line of `text[counted]`."""
        self.decoder = json.JSONDecoder()

    def rows(self) -> Iterator[tuple[int, Any]]:
        """Yields (line, value). Raises JSONListError for text that is not a JSON list."""
        if self._next() != "[":
            raise JSONListError("expected a list of rows")
        self.at += 1
        more = self._next() != "]"
        while more:
            line = self._line()
            yield line, self._value()
            following = self._next()
            if following not in ("]", ","):
                raise JSONListError("not valid JSON: expected ',' or ']' after a row", self._line())
            more = following == ","
            if more:
                self.at += 1
                self._next()
        self.at += 1
        if self._next():
            raise JSONListError("not valid JSON: text after the list of rows", self._line())

    def _value(self) -> Any:
        """The row that begins at the current position."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as e:
                if not self.ended and (e.msg.startswith("Unterminated") or e.pos >= len(self.text) - CUT_SHORT):
                    self._read_more()
                    continue
                column = e.colno + (self.first_column - 1 if e.lineno == 1 else 0)
                line = self.first_line + e.lineno - 1
                raise JSONListError(f"not valid JSON: {e.msg} (column {column})", line) from e
            except RecursionError:
                raise JSONListError(f"not valid JSON: {too_deep()}", self._line()) from None
            except ValueError as e:
                raise JSONListError(f"not valid JSON: {e}", self._line()) from e
            if end == len(self.text) and not self.ended:  # a number may continue
                self._read_more()
                continue
            brackets = self.text.count("[", self.at, end) + self.text.count("{", self.at, end)
            try:
                check_depth(value, brackets=brackets)
            except BeyondLimit as e:
                raise JSONListError(f"not valid JSON: {e}", self._line()) from e
            self.at = end
            return value

    def _next(self) -> str:
        """The next character that is not whitespace, without reading it; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self._read_more()

    def _line(self) -> int:
        """The line of the current position."""
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.line

    def _read_more(self) -> None:
        """Forget the text before the current position, and read as much again as is left, at least a block."""
        line, start = self._line(), self.text.rfind("\n", 0, self.at) + 1
        self.first_column = self.at - start + 1 if line > self.first_line else self.first_column + self.at
        self.first_line, self.text, self.at, self.counted = line, self.text[self.at :], 0, 0
        if self.limit is not None and len(self.text) > self.limit:
            raise JSONListError(f"the row is larger than {shown_bytes(self.limit)}", line, JSON_SIZE.hint)
        more = self.stream.read(max(BLOCK, len(self.text)))
        self.ended = not more
        self.text += more
