"""Characters beyond ASCII in tables and curves, where the output can show them."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TextIO

WIDE = 200
"""Characters of a line of a table that no terminal shows: a pipe or a file gets every column."""


def shows(text: str, stream: TextIO | None = None) -> bool:
    """Whether the encoding of a stream, by default standard output, has all characters of a text."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def arrow() -> str:
    """`→`, or `->` where the output lacks it."""
    return "→" if shows("→") else "->"


def line_width() -> int:
    """The width of the terminal or of the variable COLUMNS, else `WIDE`."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return max(shutil.get_terminal_size((80, 24)).columns, 20) if known else WIDE
