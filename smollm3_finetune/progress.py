"""Progress output: none (as a library), plain lines, or a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from smollm3_finetune.api import Progress, Task


def line(text: str) -> None:
    """Print a line on standard error. A standard error that is closed or full never ends a run."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class _NoTask:
    def advance(self, steps: int = 1) -> None:
        pass


class Silent:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        yield _NoTask()

    def say(self, message: str) -> None:
        pass


@dataclass
class _LineTask:
    description: str
    total: int | None
    done: int = 0
    shown: float = 0.0

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.shown > 10:
            self.shown = now
            of = f"/{self.total}" if self.total is not None else ""
            line(f"{self.description}: {self.done}{of}")


class Lines:
    """Plain lines on standard error, for logs and pipes."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        if total is not None:  # work of unknown length is mostly short; it is reported if it took over 10 s
            self.say(f"{description} …")
        began = time.monotonic()
        yield _LineTask(description, total, shown=began)
        if total is not None or time.monotonic() - began > 10:
            self.say(f"{description}: {time.monotonic() - began:.1f} s")

    def say(self, message: str) -> None:
        line(message)


class Terminal:
    """A progress bar with the remaining time, drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        # no wider than the terminal, so that the times are not cut off
        room = self.console.width - len(f"{description}  0:00:00 0:00:00 ")
        # a column and the space after it are omitted together
        drawn = [BarColumn(min(room, 40))] if room >= 4 else []
        elapsed = [TimeElapsedColumn()] if room >= -2 else []
        columns = (TextColumn("{task.description}"), *drawn, *elapsed, TimeRemainingColumn())
        with Bar(*columns, console=self.console, transient=True) as bar:
            ident = bar.add_task(description, total=total)

            class Shown:
                def advance(self, steps: int = 1) -> None:
                    bar.advance(ident, steps)

            yield Shown()

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False)


def for_stream() -> Progress:
    """`Terminal` if standard error is a terminal, else `Lines`."""
    return Terminal() if sys.stderr is not None and sys.stderr.isatty() else Lines()
