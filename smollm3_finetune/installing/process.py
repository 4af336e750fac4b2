"""Runs pip, uv and Python as processes of their own, which a request to stop ends too."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE = 10.0
"""Seconds that a process gets to clean up after a request to stop."""
SETTINGS = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_NO_COLOR": "1", "PIP_PROGRESS_BAR": "off",
    "PIP_ROOT_USER_ACTION": "ignore", "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "PYTHONIOENCODING": "utf-8",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int
    out: str
    errors: str

    @property
    def text(self) -> str:
        return f"{self.out}\n{self.errors}"


def run(command: Sequence[str], **variables: str) -> Done:
    """The result of a process. At a request to stop, it gets SIGINT and time to clean up; then the request goes on.

    The process has a session of its own: Ctrl-C reaches it through this process only, once.
    """
    child = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding="utf-8", errors="replace", env={**os.environ, **SETTINGS, **variables}, start_new_session=True,
    )  # fmt: skip
    try:
        out, errors = child.communicate()
    except BaseException:
        _end(child)
        raise
    return Done(code=child.returncode, out=out, errors=errors)


def _end(child: subprocess.Popen[str]) -> None:
    """Interrupt a process and those that it started; end it if it does not clean up in time."""
    for ask in (_interrupt, subprocess.Popen.terminate, subprocess.Popen.kill):
        if child.poll() is not None:
            return
        with contextlib.suppress(OSError):
            ask(child)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=PATIENCE)


def _interrupt(child: subprocess.Popen[str]) -> None:
    if os.name == "posix":
        os.killpg(child.pid, signal.SIGINT)  # the leader of its session
    else:
        child.terminate()
