"""A child process that measures: a line of JSON to it for each job, lines of JSON from it for each event.

What measures is a separate process, so that a crash or a hang ends only the pair that it was measuring.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

MESSAGE_LENGTH = 400
"""Longest error message in a result, in characters."""


class Child:
    """A running child process, `python -m MODULE`, whose standard error goes to the file `log`."""

    def __init__(self, module: str, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **(env or {})},
            )  # fmt: skip
        self._lines = _lines(self.process)

    def send(self, job: Mapping[str, Any], *, last: bool = False) -> None:
        """Pass on one job; `last`: there will be no other. An ended process is noticed by `receive`."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            if last:
                self.process.stdin.close()
        except BrokenPipeError:
            pass

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next event; None if the process has ended. Raises queue.Empty after `timeout` seconds without one."""
        line = self._lines.get(timeout=timeout)
        return None if line is None else json.loads(line)

    def last_words(self) -> str:
        """How the process ended, and the last line that it printed."""
        code = self.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = (self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        return one_line(f"the process ended with {how}: {last}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # of a job that was not read
            self.process.stdin.close()


def _lines(child: subprocess.Popen[str]) -> queue.Queue[str | None]:
    """A queue of the lines that the child prints; None when it has ended."""
    lines: queue.Queue[str | None] = queue.Queue()
    assert child.stdout is not None
    stream = child.stdout

    def read() -> None:
        with stream:
            for line in stream:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def answers() -> TextIO:
    """In the child: where events are printed. What libraries print on standard output goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def one_line(text: str) -> str:
    """One line, without the names of temporary directories, which differ each time, and of the user's directory.

    Characters that a terminal obeys, such as those of colors, are left out.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    line = re.sub(re.escape(tempfile.gettempdir() + os.sep) + r"\w+" + re.escape(os.sep), "", line)
    home = os.path.expanduser("~")
    return (line.replace(home, "~") if len(home) > 1 else line)[:MESSAGE_LENGTH]
