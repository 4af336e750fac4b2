"""The output of a run during training: a progress bar on a terminal, about twenty plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from smollm3_finetune.progress import line


class Display(Protocol):
    def say(self, message: str) -> None: ...
    def begin(self, total_steps: int, done: int) -> None: ...
    def step(self, row: Mapping[str, Any]) -> None: ...
    def end(self) -> None: ...


def duration(seconds: float) -> str:
    """`42 s`, `3:07`, `1:02:11`"""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def measures(row: Mapping[str, Any]) -> str:
    return (
        f"loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  {row['tokens_per_second']:.0f} tokens/s  "
        f"{row['memory_gb']:.2f} GB"
    )


class PlainDisplay:
    """Lines on standard error."""

    def __init__(self) -> None:
        self.total = 1
        self.began = 0.0
        self.first = 0

    def say(self, message: str) -> None:
        line(message)

    def begin(self, total_steps: int, done: int) -> None:
        self.total, self.began, self.first = max(total_steps, 1), time.monotonic(), done

    def step(self, row: Mapping[str, Any]) -> None:
        step = row["step"]
        if step % max(self.total // 20, 1) and step not in (self.first + 1, self.total):
            return
        taken = (time.monotonic() - self.began) / max(step - self.first, 1)
        left = duration(taken * (self.total - step))
        self.say(f"step {step}/{self.total}  {measures(row)}  {left} left")

    def end(self) -> None:
        pass


class NoDisplay:
    """No output, for processes other than the main process."""

    def say(self, message: str) -> None:
        pass

    def begin(self, total_steps: int, done: int) -> None:
        pass

    def step(self, row: Mapping[str, Any]) -> None:
        pass

    def end(self) -> None:
        pass


class RichDisplay:
    """One progress bar with loss, learning rate, speed, memory and time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bar: Any = None
        self.ident: Any = None

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False)

    def begin(self, total_steps: int, done: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self.bar = Progress(*columns, console=self.console)
        self.bar.start()
        self.ident = self.bar.add_task("training", total=total_steps, completed=done, measures="")

    def step(self, row: Mapping[str, Any]) -> None:
        self.bar.update(self.ident, completed=row["step"], measures=measures(row))

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def for_stream(*, plain: bool = False) -> Display:
    """`RichDisplay` if standard error is a terminal and `plain` is false, otherwise `PlainDisplay`."""
    return RichDisplay() if sys.stderr is not None and sys.stderr.isatty() and not plain else PlainDisplay()
