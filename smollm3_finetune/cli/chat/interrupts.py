"""Ctrl-C in a chat: it stops an answer, or clears the input, and not the chat."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class Interrupts:
    """Handles SIGINT inside the context: the first one during an answer is recorded, others raise KeyboardInterrupt."""

    def __init__(self) -> None:
        self.answering = False
        self.requested = False
        """Whether the answer is to be stopped."""
        self.typed = False
        """Whether text had been typed when KeyboardInterrupt was raised at the prompt."""

    def __enter__(self) -> Interrupts:
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.answering and not self.requested:
            self.requested = True
            return
        readline = sys.modules.get("readline")
        self.typed = not self.answering and readline is not None and bool(readline.get_line_buffer())
        raise KeyboardInterrupt

    def pending(self) -> bool:
        """Whether the answer that is being generated is to be stopped."""
        if self.requested:
            self.requested = False  # the next answer of the same turn is not stopped
            return True
        return False

    @contextlib.contextmanager
    def answer(self) -> Iterator[None]:
        """Inside the context, an answer is generated; what is typed is not echoed."""
        self.answering, self.requested = True, False
        try:
            with without_echo():
                yield
        finally:
            self.answering = self.requested = False


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Inside the context, a terminal does not echo what is typed into it; the next input gets it."""
    try:
        import termios

        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
    except (ImportError, OSError, ValueError):  # Windows; or not a terminal
        yield
        return
    except Exception as e:  # termios.error is not an OSError
        if type(e).__name__ != "error":
            raise
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(number, termios.TCSANOW, silent)
        yield
    finally:
        termios.tcsetattr(number, termios.TCSANOW, before)
