"""`smollm3 chat` in a terminal: it streams, Ctrl-C stops an answer and not the chat, and a second one leaves."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

pty: Any = pytest.importorskip("pty")
PATIENCE = 120.0
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Session:
    """A process in a pseudo-terminal."""

    def __init__(self, *args: str) -> None:
        try:
            self.terminal, inner = pty.openpty()
        except OSError as e:
            pytest.skip(f"this machine has no pseudo-terminals: {e}")
        import fcntl
        import struct
        import termios

        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "smollm3_finetune.main", "chat", *args],
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True, close_fds=True,
            env={**environment, "TERM": "xterm-256color"},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(inner)
        self.text = ""
        self.seen = 0

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def interrupt(self) -> None:
        """Type Ctrl-C at the prompt, when the process waits for a key.

        `input()` prints the prompt first, and a signal between the two is not seen before the next one.
        """
        time.sleep(1)
        self.type("\x03")

    def wait_for(self, text: str) -> str:
        """Wait until `text` appears after what was waited for before; returns everything up to it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            plain = CODES.sub("", self.text)
            if (at := plain.find(text, self.seen)) >= 0:
                before, self.seen = plain[self.seen : at], at + len(text)
                return before
            assert time.monotonic() < deadline, f"{text!r} does not appear: {plain[self.seen :]!r}"
            ended = self.process.poll() is not None
            if select.select([self.terminal], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):  # Linux raises EIO when the process has ended
                    self.text += os.read(self.terminal, 65536).decode(errors="replace")
                    continue
            assert not ended, f"the process ended before {text!r} appeared: {plain[self.seen :]!r}"


@pytest.fixture
def session() -> Iterator[Session]:
    one = Session("tiny", "--temperature", "9", "--top-k", "0", "--top-p", "1", "--no-plugins", "--device", "cpu",
                  "--max-new-tokens", "1500")  # fmt: skip
    yield one
    if one.process.poll() is None:
        os.killpg(one.process.pid, signal.SIGKILL)
    one.process.wait()
    os.close(one.terminal)


def test_a_chat_in_a_terminal(session: Session) -> None:
    header = session.wait_for("> ")
    assert "tiny, temperature 9" in header and "/help lists the commands" in header
    session.type("Tell me all.\n")
    session.wait_for("Tell me all.")
    deadline = time.monotonic() + PATIENCE
    while len(CODES.sub("", session.text)) < session.seen + 200:  # the answer is being drawn
        session.wait_for(" ")
        assert time.monotonic() < deadline
    session.type("\x03")
    session.wait_for("[cut: what was generated is kept]")
    session.wait_for("> ")
    session.type("/undo\n")
    session.wait_for("removed the last turn: Tell me all.")
    session.wait_for("> ")
    session.type("/sav\t")
    session.wait_for("/save")
    session.interrupt()  # clears the line
    session.wait_for("> ")
    session.interrupt()
    session.wait_for("to leave: Ctrl-C again, Ctrl-D or /exit")
    session.wait_for("> ")
    session.interrupt()
    session.wait_for("left")
    assert session.process.wait(PATIENCE) == 0
    assert "Traceback" not in session.text
