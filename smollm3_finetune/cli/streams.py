"""Standard output and standard error that are closed, full, or lack characters: they never end a run.

A run writes to standard error only, whose failures are dropped. Standard output gets the result of a command.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Any, cast

PATIENCE = 1.0
"""Seconds to wait for the reader of a standard error that does not block, before the text is dropped."""


def prepare_streams() -> None:
    """Make the standard streams usable, whatever they were opened as. Call it once, before anything is printed."""
    _open_closed()
    _drop_failures_of_stderr()
    _escape_unencodable_text()


def drop_output() -> None:
    """Discard buffered standard output, so that Python does not fail again when it flushes the buffer at exit."""
    with contextlib.suppress(OSError, ValueError):  # standard output has no file descriptor, or is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed() -> None:
    """Open the null device for each closed stream: the next file that is opened would get its number and its output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with contextlib.suppress(OSError):
            try:
                os.fstat(number)
            except OSError:
                null = os.open(os.devnull, os.O_RDWR)
                if null != number:
                    os.dup2(null, number)
                    os.close(null)
                os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


class _Forgiving(io.FileIO):
    """A file whose failing writes are dropped."""

    def write(self, text: Any, /) -> int:
        with contextlib.suppress(OSError):
            written = super().write(text)
            if written is None:  # it does not block, and its reader is slow
                import select

                select.select([], [self.fileno()], [], PATIENCE)
                written = super().write(text)
            if written is not None:
                return int(written)
        return len(text)


def _drop_failures_of_stderr() -> None:
    """Replace standard error by one that drops what a full disk or a closed terminal refuses."""
    old: Any = sys.stderr
    raw = getattr(getattr(old, "buffer", None), "raw", getattr(old, "buffer", None))
    if id(old) != id(sys.__stderr__) or not isinstance(raw, io.FileIO):  # another program replaced it, or a console
        return
    with contextlib.suppress(OSError, ValueError):
        old.flush()
        buffer = io.BufferedWriter(cast(io.RawIOBase, _Forgiving(old.fileno(), "w", closefd=False)))
        sys.stderr = io.TextIOWrapper(buffer, encoding=old.encoding, errors=old.errors, line_buffering=True)


def _escape_unencodable_text() -> None:
    """Write characters that the output's encoding lacks as `\\u2026`, which is valid JSON, instead of failing."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        import json

        assert isinstance(error, UnicodeEncodeError)
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("smollm3", escaped)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream that cannot be reconfigured
            stream.reconfigure(errors="smollm3")  # type: ignore[union-attr]
