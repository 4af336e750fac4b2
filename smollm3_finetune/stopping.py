"""Requests to stop: signals, and the time limit of a run.

`main` handles them. A request raises `Stop` in the main thread, wherever the program is; where work would be
lost, it is deferred: recorded, and looked at when the work is saved. A signal that is ignored when the program starts,
such as SIGHUP under nohup, stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.errors import ConfigError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
TIME_LIMIT_CODE = 75
"""Exit code of a run that reached its time limit: EX_TEMPFAIL of sysexits.h, "try again"."""
AGAIN = 10.0
"""Seconds after which a repeated signal raises `Stop` once more, in case a library swallowed the first one."""


class Stop(KeyboardInterrupt):
    """A request to stop. It is not an Exception, so that libraries do not take it for a failure."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.reason = reason
        """`SIGTERM`, `the time limit of 55m`, …"""
        self.exit_code = exit_code
        """128 + the number of the signal, or `TIME_LIMIT_CODE`."""
        self.message = f"stopped by {reason}"
        self.hint: str | None = None


@dataclass
class _State:
    request: Stop | None = None
    raised: float | None = None
    """When the request was raised last, on the monotonic clock."""
    deferred: bool = False
    deadline: float | None = None
    """When the time limit ends, on the monotonic clock."""
    limit: str = ""
    interrupts: int = 0


_state = _State()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Inside the context, the signals of `SIGNALS` are requests to stop. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]  # Windows lacks some
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, _on_signal)
        if hasattr(signal, "SIGALRM"):
            before[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
            signal.signal(signal.SIGALRM, lambda number, frame: _ask(_time_is_up()))
        yield
    finally:
        _forget()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _on_signal(number: int, frame: Any) -> None:
    if number == signal.SIGINT:
        _state.interrupts += 1
        if _state.interrupts > 1:
            _exit_at_once(128 + number)
    _ask(Stop(signal.Signals(number).name, 128 + number))


def _ask(stop: Stop) -> None:
    """Record a request, and raise it unless it is deferred or being handled."""
    if _state.request is None:
        _state.request = stop
    now = time.monotonic()
    if _state.deferred or (_state.raised is not None and now - _state.raised < AGAIN):
        return
    _state.raised = now
    raise _state.request


def _exit_at_once(code: int) -> None:
    """End the process without any cleanup, as a kill would; only a hidden cursor is shown again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\x1b[?25h\n")
    os._exit(code)


def _time_is_up() -> Stop:
    return Stop(f"the time limit of {_state.limit}", TIME_LIMIT_CODE)


def limit_time(text: str, began: float) -> None:
    """Ask the program to stop when `text` (such as `55m`) has passed since `began`, on the monotonic clock.

    Raises ConfigError if `text` is not a duration, and Stop if the time has passed already.
    """
    _state.limit, _state.deadline = text, began + seconds(text)
    left = _state.deadline - time.monotonic()
    if hasattr(signal, "setitimer") and callable(signal.getsignal(signal.SIGALRM)):
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))


def lift_time_limit() -> None:
    """Forget the time limit, for a process that does something else after the run."""
    _state.deadline = None
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)


def requested(reserve: float = 0.0) -> Stop | None:
    """The request that was made, or None. The time limit counts as reached if less than `reserve` seconds are left."""
    if _state.request is None and _state.deadline is not None and time.monotonic() + reserve >= _state.deadline:
        _state.request = _time_is_up()
    return _state.request


def delivered() -> Stop | None:
    """The request, if it has been raised: an error after it may be what a library made of it."""
    return _state.request if _state.raised is not None else None


def check() -> None:
    """Raise the request if there is one."""
    if (stop := requested()) is not None:
        _state.raised = time.monotonic()
        raise stop


@contextlib.contextmanager
def deferred() -> Iterator[bool]:
    """Inside the context, a request is only recorded; it is raised at the end of the context.

    Yields whether the context around it defers requests.
    """
    before, _state.deferred = _state.deferred, True
    try:
        yield before
    finally:
        _state.deferred = before
    if not before:
        check()


@contextlib.contextmanager
def undeferred(unless: bool = False) -> Iterator[None]:
    """Inside the context, a request is raised at once, although the context around it defers requests.

    With `unless`, it does nothing.
    """
    if unless:
        yield
        return
    before, _state.deferred = _state.deferred, False
    try:
        check()
        yield
    finally:
        _state.deferred = before


def _forget() -> None:
    """Forget every request and limit: a process may continue after it, for example with another test."""
    lift_time_limit()
    _state.request, _state.raised, _state.deferred, _state.interrupts = None, None, False, 0


UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")


def seconds(text: str, option: str = "--max-time") -> int:
    """The seconds of a duration such as `90s`, `55m`, `1h30m` or `2d`. Raises ConfigError for anything else."""
    found = DURATION.fullmatch(text.strip())
    total = sum(int(n) * unit for n, unit in zip(found.groups(), UNITS.values(), strict=True) if n) if found else 0
    if total == 0:
        raise ConfigError(f"{option}: {text!r} is not a duration", hint=f"for example {option} 55m, 1h30m or 2d")
    return total
