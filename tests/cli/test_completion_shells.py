"""Tab is pressed in a real bash, zsh and fish, on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(smollm3 completion bash)"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D; source <(smollm3 completion zsh)"),
    "fish": (["fish", "--no-config", "-i"], "smollm3 completion fish | source"),
}
CONTROL = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[()][A-Z0-9])|\r|\x08")
PATIENCE = 60.0
QUESTIONS = {b"\x1b[6n": b"\x1b[1;1R", b"\x1b[c": b"\x1b[?6c", b"\x1b[0c": b"\x1b[?6c"}
"""What a shell asks a terminal, and the answers."""


class Terminal:
    """A shell on a terminal."""

    def __init__(self, shell: str, env: dict[str, str]) -> None:
        self.process, self.handle = pty.fork()
        if self.process == 0:
            os.execvpe(START[shell][0][0], START[shell][0], env)
        fcntl.ioctl(self.handle, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
        self.type("echo rea''dy\r", "ready")
        self.type(f"{START[shell][1]}; echo lo''aded\r", "loaded")

    def type(self, text: str, expected: str) -> str:
        """Type a text, and wait for what the screen must then show."""
        os.write(self.handle, text.encode())
        shown, end = "", time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if select.select([self.handle], [], [], 0.2)[0]:
                data = os.read(self.handle, 1 << 16)
                for question, reply in QUESTIONS.items():
                    if question in data:
                        os.write(self.handle, reply)
                shown += data.decode("utf-8", "replace")
                if expected in CONTROL.sub("", shown):
                    return CONTROL.sub("", shown)
        raise AssertionError(f"{text!r}: no {expected!r} in {CONTROL.sub('', shown)!r}")

    def complete(self, line: str, expected: str, tabs: int = 1) -> str:
        """Type a line and Tab, and erase the line again."""
        shown = self.type(line + "\t" * tabs, expected)
        self.type("\x15echo do''ne\r", "done")  # Ctrl-U erases the line
        return shown

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self.handle, b"\x03\x04exit\r")
        os.close(self.handle)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process, 0)


@pytest.fixture(params=START)
def terminal(request: pytest.FixtureRequest, tmp_path: Path, isolated: Path) -> Iterator[Terminal]:
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param}")
    program = tmp_path / "bin" / "smollm3"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m smollm3_finetune.main "$@"\n')
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    for started, name in enumerate(("20261101-tiny", "20261102 two words"), start=1_000_000_000):
        run = isolated / "runs" / name
        run.mkdir(parents=True)
        (run / "run.yaml").touch()
        (run / "versions.json").touch()
        os.utime(run / "run.yaml", (started, started))
    (isolated / "rows.jsonl").touch()
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    one = Terminal(
        request.param, {**os.environ, "PATH": path, "HOME": str(tmp_path / "home"), "PS1": "$ ", "TERM": "xterm"}
    )
    yield one
    one.close()


def test_tab_completes(terminal: Terminal) -> None:
    terminal.complete("smollm3 tra", "smollm3 train ")
    terminal.complete("smollm3 train --launcher torch", "--launcher torchrun ")
    terminal.complete("smollm3 train --adapter=fu", "--adapter=full ")
    terminal.complete("smollm3 train --launcher torchrun --launcher-opt proc", "--launcher-opt processes=")
    terminal.complete("smollm3 train --set train.sched", "--set train.schedule=")
    terminal.complete("smollm3 train --set train.schedule=lin", "train.schedule=linear ")
    terminal.complete("smollm3 train --data ro", "--data rows.jsonl ")
    terminal.complete("smollm3 train --set data.path=ro", "--set data.path=rows.jsonl ")
    terminal.complete("smollm3 runs show runs/20261102", r"runs/20261102\ two\ words ")
    listed = terminal.complete("smollm3 runs show runs/2026110", "20261101-tiny", tabs=2)
    assert "two" in listed[: listed.index("20261101-tiny")]  # the newest first
