"""The output of a run during training: a progress bar on a terminal, about twenty plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from smollm3_finetune.progress import line

BAR = (8, 24)
"""The narrowest and the widest progress bar, in characters."""


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


def measures(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a row of metrics, in the order in which they are shown."""
    return {
        "loss": f"loss {row['loss']:.4f}",
        "learning_rate": f"lr {row['learning_rate']:.2e}",
        "tokens_per_second": f"{row['tokens_per_second']:.0f} tokens/s",
        "memory_gb": f"{row['memory_gb']:.2f} GB",
    }


def fitted(step: int, total: int, row: Mapping[str, Any] | None, left: float | None, width: int) -> str:
    """`step 3/10  loss 2.1043  …  42 s left` in at most `width` characters: the least important measures are omitted.

    Step and time left are always shown. `left`: seconds, None if unknown.
    """
    shown = {"step": f"step {step}/{total}", **(measures(row) if row else {})}
    if left is not None:
        shown["left"] = f"{duration(left)} left"
    for name in ("memory_gb", "learning_rate", "tokens_per_second", "loss"):
        if len("  ".join(shown.values())) <= width:
            break
        shown.pop(name, None)
    return "  ".join(shown.values())


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
        left = (time.monotonic() - self.began) / max(step - self.first, 1) * (self.total - step)
        self.say("  ".join((f"step {step}/{self.total}", *measures(row).values(), f"{duration(left)} left")))

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
        from rich.progress import Progress, ProgressColumn, Task
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        class Line(ProgressColumn):
            """A line that fits the terminal, also after the terminal is resized."""

            def render(self, task: Task) -> Table:
                left = task.time_remaining
                text = fitted(int(task.completed), total_steps, task.fields["row"], left, console.width)
                room = console.width - len(text) - 2
                grid = Table.grid(padding=(0, 1))
                if room < BAR[0]:
                    grid.add_row(text)
                else:
                    grid.add_row(ProgressBar(total_steps, task.completed, min(room, BAR[1])), text)
                return grid

        console = self.console
        self.bar = Progress(Line(), console=console)
        self.bar.start()
        self.ident = self.bar.add_task("training", total=total_steps, completed=done, row=None)

    def step(self, row: Mapping[str, Any]) -> None:
        self.bar.update(self.ident, completed=row["step"], row=row)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def for_stream(*, plain: bool = False) -> Display:
    """`RichDisplay` if standard error is a terminal and `plain` is false, otherwise `PlainDisplay`."""
    return RichDisplay() if sys.stderr is not None and sys.stderr.isatty() and not plain else PlainDisplay()
